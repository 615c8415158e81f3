//! How many requests are under way at once: fewer as soon as the store asks for that, one more at a time as it answers.
//!
//! The rule is that of TCP's window. Who is told to slow down halves what was under way, once for all that were asked
//! before; when as many requests as the window holds were answered, it holds one more. It begins wider than anybody asks,
//! so nothing waits for it until a store has said so. First come, first served. Clones of a store share it. It does not
//! know what a request is; that each ends is up to its watchdog.

use std::sync::Mutex;

use tokio::sync::Semaphore;

/// More than all callers together ask at once.
const SIZE_MAX: usize = 256;

/// The requests under way to one store.
#[derive(Debug)]
pub(super) struct Window {
    rule: Mutex<Rule>,
    turns: Semaphore,
}

/// Leave to be under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    window: &'a Window,
    /// How often the window had been made smaller when this began.
    pub(super) cuts: u64,
}

impl Default for Window {
    fn default() -> Window {
        Window { rule: Mutex::default(), turns: Semaphore::new(SIZE_MAX) }
    }
}

impl Window {
    /// Waits until another request may be under way.
    pub(super) async fn turn(&self) -> Turn<'_> {
        self.turns.acquire().await.expect("it is never closed").forget();
        let cuts = self.rule.lock().expect("no panic while held").begin();
        Turn { window: self, cuts }
    }

    /// A request was answered.
    pub(super) fn answered(&self) {
        let mut rule = self.rule.lock().expect("no panic while held");
        if rule.answered() {
            self.turns.add_permits(1);
        }
    }

    /// A request, begun after so many cuts, was answered with the wish for fewer.
    pub(super) fn slow_down(&self, cuts: u64) {
        let mut rule = self.rule.lock().expect("no panic while held");
        let less = rule.slow_down(cuts);
        let taken = self.turns.forget_permits(less);
        rule.owed += less - taken;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut rule = self.window.rule.lock().expect("no panic while held");
        if rule.end() {
            self.window.turns.add_permits(1);
        }
    }
}

/// The window as numbers.
#[derive(Debug)]
struct Rule {
    size: usize,
    under_way: usize,
    /// Requests that were answered since the size changed.
    answered: usize,
    /// Turns that are out and do not come back.
    owed: usize,
    cuts: u64,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule { size: SIZE_MAX, under_way: 0, answered: 0, owed: 0, cuts: 0 }
    }
}

impl Rule {
    fn begin(&mut self) -> u64 {
        self.under_way += 1;
        self.cuts
    }

    /// Tells whether the turn that ends is given out again.
    fn end(&mut self) -> bool {
        self.under_way -= 1;
        self.is_given()
    }

    /// Tells whether one more turn is given out.
    fn answered(&mut self) -> bool {
        self.answered += 1;
        if self.size == SIZE_MAX || self.answered < self.size {
            return false;
        }
        (self.size, self.answered) = (self.size + 1, 0);
        self.is_given()
    }

    /// Returns how many turns fewer there are to be.
    fn slow_down(&mut self, cuts: u64) -> usize {
        if cuts < self.cuts {
            return 0; // asked before the store was heeded
        }
        let size = (self.size.min(self.under_way) / 2).max(1);
        let less = self.size - size;
        (self.size, self.answered, self.cuts) = (size, 0, self.cuts + 1);
        less
    }

    fn is_given(&mut self) -> bool {
        let is_owed = self.owed > 0;
        self.owed -= usize::from(is_owed);
        !is_owed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn under_way(count: usize) -> Rule {
        let mut rule = Rule::default();
        (0..count).for_each(|_| assert_eq!(rule.begin(), 0));
        rule
    }

    #[test]
    fn a_wish_for_fewer_halves_what_is_under_way_once_for_all_that_were_asked_before() {
        let mut rule = under_way(16);
        assert_eq!(rule.slow_down(0), SIZE_MAX - 8);
        assert_eq!((rule.slow_down(0), rule.slow_down(0), rule.size), (0, 0, 8));
        (0..12).for_each(|_| assert!(rule.end()));
        assert_eq!((rule.slow_down(1), rule.size), (6, 2));
        assert_eq!((rule.slow_down(2), rule.slow_down(3), rule.size), (1, 0, 1), "one is always left");
    }

    #[test]
    fn as_many_answers_as_there_are_turns_make_one_more() {
        let mut rule = under_way(4);
        rule.slow_down(0);
        let sizes: Vec<usize> = (0..9).map(|_| (rule.answered(), rule.size).1).collect();
        assert_eq!(sizes, [2, 3, 3, 3, 4, 4, 4, 4, 5]);
        let mut wide = Rule::default();
        assert!(!(0..1000).any(|_| wide.answered()) && wide.size == SIZE_MAX);
    }

    #[tokio::test]
    async fn never_more_are_under_way_than_the_window_holds() {
        let window = Arc::new(Window::default());
        let turns = futures::future::join_all((0..8).map(|_| window.turn())).await;
        window.slow_down(turns[0].cuts);
        drop(turns);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let ask = |_| async {
            let _turn = window.turn().await;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
        };
        futures::future::join_all((0..100).map(ask)).await;
        assert_eq!(most.load(Ordering::SeqCst), 4);
        (0..4).for_each(|_| window.answered());
        futures::future::join_all((0..100).map(ask)).await;
        assert_eq!(most.load(Ordering::SeqCst), 5);
    }
}
