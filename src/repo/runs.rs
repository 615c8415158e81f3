//! Sets of snapshots, as runs of their numbers: what stays the same from one snapshot to the next takes no room.

use std::ops::Range;

/// Numbers in ascending runs that neither overlap nor touch, once [`Runs::settle`] has been called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(Vec<Range<u32>>);

impl Runs {
    /// Returns the set of one number.
    #[must_use]
    pub fn of(number: u32) -> Self {
        let mut runs = Self::default();
        runs.0.push(number..number + 1);
        runs
    }

    /// Adds all numbers of another set.
    pub fn add(&mut self, other: &Self) {
        for run in &other.0 {
            match self.0.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => self.0.push(run.clone()),
            }
        }
        // Runs that are shared by many are added many times.
        if self.0.len() > 64 && self.0.len().is_power_of_two() {
            self.settle();
        }
    }

    /// Brings runs into their order and joins those that touch.
    pub fn settle(&mut self) {
        self.0.sort_unstable_by_key(|run| run.start);
        self.0.dedup_by(|run, before| {
            let joins = run.start <= before.end;
            if joins {
                before.end = before.end.max(run.end);
            }
            joins
        });
    }

    /// Returns the numbers.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().cloned().flatten().map(|number| number as usize)
    }

    /// Returns how many numbers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// Returns the smallest and the largest number.
    #[must_use]
    pub fn ends(&self) -> Option<(usize, usize)> {
        Some((self.0.first()?.start as usize, self.0.last()?.end as usize - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_once_in_whatever_order_they_come() {
        let mut runs = Runs::default();
        for number in [5, 3, 4, 9, 5, 0] {
            runs.add(&Runs::of(number));
        }
        runs.settle();
        assert_eq!((runs.iter().collect::<Vec<_>>(), runs.count()), (vec![0, 3, 4, 5, 9], 5));
        assert_eq!((runs.ends(), runs.0.len()), (Some((0, 9)), 3));
        assert_eq!((Runs::default().ends(), Runs::default().count()), (None, 0));
        let mut many = Runs::default();
        (0..10_000).map(|n| Runs::of(n * 7 % 101)).for_each(|run| many.add(&run));
        assert!(many.0.len() <= 256, "{} runs", many.0.len());
        many.settle();
        assert_eq!((many.count(), many.0.len()), (101, 1));
    }
}
