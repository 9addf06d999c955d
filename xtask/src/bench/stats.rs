//! Medians, percentiles and what else is said about several values.

/// Of an even number of values, the mean of the two in the middle; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0,
    }
}

/// The value that `percent` of all do not exceed (nearest rank); NaN of none.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let sorted = sorted(values);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::min)
}

pub fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::{least, median, most, percentile};
    use crate::random::Random;

    #[test]
    fn the_middle_and_the_edges() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!((median(&values), least(&values), most(&values)), (2.5, 1.0, 4.0));
        assert_eq!((median(&[7.0]), percentile(&values, 50.0), percentile(&values, 99.0)), (7.0, 2.0, 4.0));
        assert!(median(&[]).is_nan() && percentile(&[], 99.0).is_nan() && least(&[]).is_nan());
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut values: Vec<u64> = (0..100).collect();
        Random(7).shuffle(&mut values);
        assert_ne!(values, (0..100).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..100).collect::<Vec<_>>());
    }
}
