//! Decimal parameters as integers of one ten-thousandth, by one rounding: the JSON number as an IEEE double, times
//! 10,000 in one multiplication, to the nearest integer, halves away from zero.

use lockstep_protocol::generation::SAMPLING_ONE;

use crate::http::error::ApiError;

/// A decimal in units of 1e-4.
///
/// # Errors
/// It is outside `min` to `max`, which are in units of 1e-4 too.
pub fn units(param: &str, value: f64, min: i64, max: i64) -> Result<i64, ApiError> {
    let one = f64::from(SAMPLING_ONE);
    let scaled = (value * one).round();
    // Also where it is no number. Within these bounds the conversion is exact.
    if !(scaled >= min as f64 && scaled <= max as f64) {
        let real = |units: i64| units as f64 / one;
        let message = format!("{param} is {}; {} to {} is allowed.", shown(value), real(min), real(max));
        return Err(wrong(param, message));
    }
    Ok(scaled as i64)
}

/// The same, for what is not negative.
///
/// # Errors
/// As [`units`].
pub fn unsigned(param: &str, value: f64, min: u32, max: u32) -> Result<u32, ApiError> {
    let units = units(param, value, min.into(), max.into())?;
    u32::try_from(units).map_err(|_| wrong(param, format!("{param} is negative.")))
}

/// The same, for what may be negative, on both sides alike.
///
/// # Errors
/// As [`units`].
pub fn signed(param: &str, value: f64, most: i32) -> Result<i32, ApiError> {
    let units = units(param, value, -i64::from(most), most.into())?;
    i32::try_from(units).map_err(|_| wrong(param, format!("{param} is out of range.")))
}

fn wrong(param: &str, message: String) -> ApiError {
    ApiError::parameter(param.to_owned(), message)
}

/// A number in few digits: by its exponent where it is very large or small, and a whole one without a fraction.
fn shown(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rounding_for_all() {
        let read =
            |json: &str| serde_json::from_str(json).map(|value| units("temperature", value, -20_000, 20_000).ok());
        for (json, expected) in [
            ("0.7", Some(7_000)),
            ("1", Some(10_000)),
            ("0.00005", Some(1)),
            ("-0.00005", Some(-1)),
            ("0.000049999", Some(0)),
            ("0.12345", Some(1_235)),
            ("0.1", Some(1_000)),
            ("0.3", Some(3_000)),
            ("1e-320", Some(0)),
            ("2.00004", Some(20_000)),
            ("2.00005", None),
            ("1e300", None),
            ("-2.1", None),
        ] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
        for (value, shown) in
            [(1e300, "1e300"), (-3.0, "-3"), (2.5, "2.5"), (-1e-300, "-1e-300"), (1e15, "1000000000000000")]
        {
            let error = units("x", value, 10_000, 20_000).unwrap_err();
            assert_eq!((error.param(), error.message()), (Some("x"), &*format!("x is {shown}; 1 to 2 is allowed.")));
        }
        assert!(units("x", f64::NAN, 0, 1).is_err() && units("x", f64::INFINITY, 0, 1).is_err());
        let every = (0..=20_000_i64).all(|n| read(&format!("{}.{:04}", n / 10_000, n % 10_000)).unwrap() == Some(n));
        assert!(every, "four digits are taken as they are");
    }
}
