//! The only clock that templates have: a date that is part of the request.

use std::fmt;
use std::str::FromStr;

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A day of the Gregorian calendar, years 1 to 9999, written `YYYY-MM-DD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// No such day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a date is written YYYY-MM-DD, as in 2024-07-26")]
pub struct NoDate;

impl Date {
    /// The date of requests that name none: 26 July 2024, which the templates of Llama 3 fall back on by themselves.
    pub const DEFAULT: Self = Self { year: 2024, month: 7, day: 26 };

    /// As C's `strftime` formats midnight of this day, in English: `%Y %y %m %d %e %j %B %b %A %a %H %M %S %I %p %%`, and
    /// `%-d` `%-m` without a zero in front.
    ///
    /// # Errors
    /// Another conversion.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let mut text = String::with_capacity(format.len());
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut conversion = rest.next().map(String::from).unwrap_or_default();
            if conversion == "-" {
                conversion.extend(rest.next());
            }
            text.push_str(&self.part(&conversion)?);
        }
        Ok(text)
    }

    fn part(self, conversion: &str) -> Result<String, Error> {
        let Self { year, month, day } = self;
        let month_name = MONTHS[usize::from(month) - 1];
        let weekday = WEEKDAYS[self.weekday()];
        Ok(match conversion {
            "Y" => format!("{year:04}"),
            "y" => format!("{:02}", year % 100),
            "m" => format!("{month:02}"),
            "-m" => month.to_string(),
            "d" => format!("{day:02}"),
            "-d" => day.to_string(),
            "e" => format!("{day:2}"),
            "j" => format!("{:03}", self.day_of_year()),
            "B" => month_name.to_owned(),
            "b" => month_name[..3].to_owned(),
            "A" => weekday.to_owned(),
            "a" => weekday[..3].to_owned(),
            "H" | "M" | "S" => "00".to_owned(),
            "I" => "12".to_owned(),
            "p" => "AM".to_owned(),
            "%" => "%".to_owned(),
            other => {
                let message = format!("the template asks for the date as %{other}, which is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        })
    }

    fn day_of_year(self) -> u32 {
        (1..self.month).map(|month| u32::from(days_of(self.year, month))).sum::<u32>() + u32::from(self.day)
    }

    /// 0 is Sunday.
    fn weekday(self) -> usize {
        let before = u32::from(self.year) - 1;
        // 1 January of the year 1 was a Monday.
        let days = before * 365 + before / 4 - before / 100 + before / 400 + self.day_of_year();
        days as usize % 7
    }
}

fn days_of(year: u16, month: u8) -> u8 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 => 28 + u8::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl FromStr for Date {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        let bytes = text.as_bytes();
        let is_digit =
            |(index, byte): (usize, &u8)| if matches!(index, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() };
        if bytes.len() != 10 || !bytes.iter().enumerate().all(is_digit) {
            return Err(NoDate);
        }
        let number = |range: std::ops::Range<usize>| text[range].parse::<u16>().map_err(|_| NoDate);
        let (year, month, day) = (number(0..4)?, number(5..7)? as u8, number(8..10)? as u8);
        let is_day = year >= 1 && (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
        if is_day { Ok(Self { year, month, day }) } else { Err(NoDate) }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}
