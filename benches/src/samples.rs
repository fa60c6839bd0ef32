//! Repeated measurements of one thing, and what is said of them: the median and the spread.

use std::time::{Duration, Instant};

/// The middle of the sorted samples; of the two middle ones the lower. `NaN` where there are none.
pub fn median(samples: impl Iterator<Item = f64>) -> f64 {
    Samples(samples.collect()).median()
}

/// Measurements of one thing, in any unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The sample below which a share of the others lies, the lower one where the share falls between two. `NaN` where
    /// there are none.
    fn quantile(&self, quarters: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) * quarters / 4).copied().unwrap_or(f64::NAN)
    }

    /// Of samples that were taken together the one over the other.
    pub fn ratios(above: &[f64], below: &[f64]) -> Self {
        above.iter().zip(below).map(|(above, below)| above / below).collect()
    }

    /// The middle of the sorted samples; of the two middle ones the lower.
    pub fn median(&self) -> f64 {
        self.quantile(2)
    }

    /// The distance between the first and the third quartile, as a share of the median: how far apart runs are of which
    /// one would say that they are alike. Of fewer than five samples the distance of the extremes.
    pub fn spread(&self) -> f64 {
        let distance = match self.0.len() {
            0..5 => self.quantile(4) - self.quantile(0),
            _ => self.quantile(3) - self.quantile(1),
        };
        distance / self.median().abs()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// How long to go on measuring.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples at the least.
    pub least: usize,
    /// Samples at the most.
    pub most: usize,
    /// No sample starts after this time once there are enough.
    pub budget: Duration,
}

impl Effort {
    /// Measures once without counting, and then until there is enough. `once` says what it measured.
    ///
    /// # Errors
    /// Whatever `once` says.
    pub fn sample<E>(&self, mut once: impl FnMut() -> Result<f64, E>) -> Result<Samples, E> {
        once()?;
        let start = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < self.least.max(1) || samples.len() < self.most && start.elapsed() < self.budget {
            samples.push(once()?);
        }
        Ok(Samples(samples))
    }
}

/// Seconds that `work` takes.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_lower_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.0);
        assert!(median([].into_iter()).is_nan());
    }

    #[test]
    fn spread_is_that_of_the_middle_half_or_of_few_samples_that_of_all() {
        let spread = |samples: &[f64]| Samples(samples.to_vec()).spread();
        assert_eq!(spread(&[10.0]), 0.0);
        assert_eq!(spread(&[8.0, 10.0, 12.0]), 0.4);
        assert_eq!(spread(&[1.0, 9.0, 10.0, 11.0, 99.0]), 0.2);
        assert!(spread(&[]).is_nan());
    }

    #[test]
    fn warming_up_does_not_count() {
        let mut calls = 0_u32;
        let mut once = || {
            calls += 1;
            Ok::<_, ()>(f64::from(calls))
        };
        let effort = Effort { least: 2, most: 3, budget: Duration::ZERO };
        assert_eq!(effort.sample(&mut once), Ok(Samples(vec![2.0, 3.0])));
        let effort = Effort { budget: Duration::MAX, ..effort };
        assert_eq!(effort.sample(&mut once), Ok(Samples(vec![5.0, 6.0, 7.0])));
    }
}
