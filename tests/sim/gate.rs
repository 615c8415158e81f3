//! The gate before the bucket: one operation at a time, whose turn it is says the seed.
//!
//! Every actor has a thread, and one of them runs. Whoever comes with an operation waits at the gate until its turn comes;
//! with the turn comes its fate: it takes effect, fails, fails after its effect, or its actor crashes here, in which case
//! all that the actor asks for later fails and has no effect. Between two turns nothing changes in the bucket, so one
//! seed gives one run. Party 0 is the director, who is asked after every change before anybody goes on.
//!
//! An actor whose code is a single future waits with all its requests at once, and any of them may be served first, or
//! some of them when it crashes. One that blocks its threads waits with one request.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use object_store::{Error, Result};

use crate::bucket::{Answer, Bucket, Change, Op};
use crate::random::Random;

/// Party 0.
pub(crate) const DIRECTOR: usize = 0;
/// The most milliseconds that an operation takes.
const OP_MS_MAX: u64 = 400;
/// The most turns that an actor sleeps: others come from beginning to end meanwhile.
const SLEEP_TURNS_MAX: u64 = 300;

/// How often what happens: one in so many operations, never if 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) crash: u64,
    /// It has no effect, or its reply is lost, and its actor is told.
    pub(crate) fault: u64,
    /// Its reply is lost, and the store's client repeats it.
    pub(crate) repeat: u64,
    /// The director gets the turn.
    pub(crate) director: u64,
    /// Out of 100: whoever had the turn has it again.
    pub(crate) stays: u64,
    /// Whoever had the turn has no other for a while.
    pub(crate) sleep: u64,
}

struct Pending {
    ticket: u64,
    op: Op,
    waker: Waker,
}

/// Whoever takes part.
pub(crate) struct Party {
    pub(crate) name: String,
    /// Its own clock.
    pub(crate) clock: Arc<AtomicI64>,
    /// Its operations pass without waiting: it is being set up.
    pub(crate) is_free: bool,
    /// It crashed or is over: whatever it asks for fails.
    pub(crate) is_dead: bool,
    /// One of its operations failed.
    pub(crate) is_hurt: bool,
    /// Its threads wait here, not its futures: a backup.
    pub(crate) blocks: bool,
    /// When a backup last listed `pending/`, and began no pack since.
    pub(crate) looked_ms: Option<i64>,
    /// It falls asleep after so many changes.
    pub(crate) sleeps_after: Option<u64>,
    waits: bool,
    /// No turn before this one, as long as there are others.
    sleeps_until: u64,
    at_gate: bool,
    pending: Vec<Pending>,
    served: BTreeMap<u64, Result<Answer>>,
    wake: Arc<Condvar>,
}

pub(crate) struct State {
    pub(crate) bucket: Bucket,
    pub(crate) random: Random,
    pub(crate) now_ms: i64,
    pub(crate) parties: Vec<Party>,
    /// What changed since the director looked last.
    pub(crate) changes: Vec<Change>,
    pub(crate) log: Vec<String>,
    pub(crate) rates: Rates,
    turn: usize,
    turns: u64,
    tickets: u64,
}

/// The gate; clones are the same one.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Mutex<State>>);

impl Gate {
    pub(crate) fn new(bucket: Bucket, random: Random, now_ms: i64, rates: Rates) -> Self {
        let (parties, changes, log) = (Vec::new(), Vec::new(), Vec::new());
        let turns = 0;
        let state = State { bucket, random, now_ms, parties, changes, log, rates, turn: DIRECTOR, turns, tickets: 0 };
        let gate = Self(Arc::new(Mutex::new(state)));
        assert_eq!(gate.join("director".to_owned(), false, 0), DIRECTOR);
        gate
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics at the gate")
    }

    /// Adds a party that passes freely until [`Gate::start`]; its clock is wrong by `skew_ms`.
    pub(crate) fn join(&self, name: String, blocks: bool, skew_ms: i64) -> usize {
        let mut state = self.lock();
        let clock = Arc::new(AtomicI64::new(state.now_ms + skew_ms));
        state.parties.push(Party {
            name,
            clock,
            is_free: true,
            is_dead: false,
            is_hurt: false,
            blocks,
            looked_ms: None,
            sleeps_after: None,
            waits: false,
            sleeps_until: 0,
            at_gate: false,
            pending: Vec::new(),
            served: BTreeMap::new(),
            wake: Arc::default(),
        });
        state.parties.len() - 1
    }

    /// Has a party wait for its turn, before its thread even runs.
    pub(crate) fn start(&self, me: usize) {
        let mut state = self.lock();
        (state.parties[me].is_free, state.parties[me].waits) = (false, true);
    }

    /// Waits for the first turn of a party that was started.
    pub(crate) fn enter(&self, me: usize) {
        drop(Self::turn(self.lock(), me));
    }

    /// Ends a party; somebody else gets the turn.
    pub(crate) fn leave(&self, me: usize) {
        let mut state = self.lock();
        state.parties[me].is_dead = true;
        state.pass();
    }

    /// Gives the turn away and waits until it comes back: for the director.
    pub(crate) fn rest(&self) {
        let mut state = self.lock();
        state.parties[DIRECTOR].waits = true;
        state.pass();
        drop(Self::turn(state, DIRECTOR));
    }

    fn turn(mut state: MutexGuard<'_, State>, me: usize) -> MutexGuard<'_, State> {
        let wake = state.parties[me].wake.clone();
        while state.turn != me {
            state = wake.wait(state).expect("nobody panics at the gate");
        }
        state.parties[me].waits = false;
        state
    }

    /// Waits at the gate with one operation, blocking the thread.
    pub(crate) fn step(&self, me: usize, op: &Op) -> Result<Answer> {
        let mut state = self.lock();
        let wake = state.parties[me].wake.clone();
        while state.parties[me].at_gate && !state.parties[me].is_dead {
            state = wake.wait(state).expect("nobody panics at the gate");
        }
        if state.parties[me].is_free {
            return state.take(me, op);
        }
        if state.parties[me].is_dead {
            return Err(gone());
        }
        state.arrive(me, op);
        (state.parties[me].at_gate, state.parties[me].waits) = (true, true);
        state.pass();
        let mut state = Self::turn(state, me);
        let answer = state.serve(me, op);
        state.parties[me].at_gate = false;
        wake.notify_all();
        answer
    }

    /// Returns a future that waits at the gate with an operation.
    pub(crate) fn request(&self, me: usize, op: Op) -> Request {
        Request { gate: self.clone(), me, op, ticket: None }
    }

    /// Waits for a turn if there is a request to be served, and serves it: to be called where nothing else can go on.
    pub(crate) fn idle(&self, me: usize) {
        let mut state = self.lock();
        if state.parties[me].pending.is_empty() || !state.parties[me].served.is_empty() {
            return;
        }
        state.parties[me].waits = true;
        state.pass();
        let mut state = Self::turn(state, me);
        let count = state.parties[me].pending.len() as u64;
        let chosen = state.random.below(count);
        let one = state.parties[me].pending.remove(usize::try_from(chosen).expect("few"));
        let answer = state.serve(me, &one.op);
        state.parties[me].served.insert(one.ticket, answer);
        one.waker.wake();
        while state.parties[me].is_dead && !state.parties[me].pending.is_empty() {
            let other = state.parties[me].pending.remove(0);
            state.strand(me, &other.op);
            state.parties[me].served.insert(other.ticket, Err(gone()));
            other.waker.wake();
        }
    }
}

impl State {
    /// Gives the turn to somebody who waits for it.
    fn pass(&mut self) {
        self.turns += 1;
        let mut others: Vec<_> = (1..self.parties.len()).filter(|n| self.parties[*n].waits).collect();
        let is_awake = |n: &usize| self.parties[*n].sleeps_until <= self.turns;
        if others.iter().any(is_awake) {
            others.retain(is_awake);
        }
        let is_directors = !self.changes.is_empty() || others.is_empty() || self.chance(self.rates.director);
        self.turn = match others.contains(&self.turn) && self.random.below(100) < self.rates.stays {
            _ if is_directors => DIRECTOR,
            true => self.turn,
            false => *self.random.one(&others),
        };
        self.parties[self.turn].wake.notify_all();
    }

    fn chance(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.random.below(one_in) == 0
    }

    /// Lets time go by, on all clocks.
    pub(crate) fn advance(&mut self, ms: i64) {
        self.now_ms += ms;
        for party in &self.parties {
            party.clock.fetch_add(ms, Ordering::Relaxed);
        }
    }

    fn arrive(&mut self, me: usize, op: &Op) {
        if op.puts_below("packs/") {
            self.parties[me].looked_ms = None;
        }
    }

    /// Has an operation take effect.
    fn take(&mut self, me: usize, op: &Op) -> Result<Answer> {
        let (answer, change) = self.bucket.apply(op, self.now_ms);
        if let Some((name, is_put)) = change {
            self.changes.push(Change { by: me, name, is_put });
            let party = &mut self.parties[me];
            if party.sleeps_after == Some(0) {
                party.sleeps_until = self.turns + SLEEP_TURNS_MAX;
            }
            party.sleeps_after = party.sleeps_after.and_then(|changes| changes.checked_sub(1));
        }
        let is_look = matches!(op, Op::List { folder, .. } if folder == "pending");
        if is_look && self.parties[me].blocks {
            self.parties[me].looked_ms = Some(self.now_ms);
        }
        answer
    }

    /// Gives an operation its fate.
    fn serve(&mut self, me: usize, op: &Op) -> Result<Answer> {
        let ms = 1 + self.random.below(OP_MS_MAX);
        self.advance(i64::try_from(ms).expect("short"));
        // Where something changes is where it hurts to stop.
        let often = if matches!(op, Op::Put { .. } | Op::Delete { .. }) { 4 } else { 1 };
        let Rates { crash, fault, repeat, sleep, .. } = self.rates;
        let (crash, fault, repeat) = (self.chance(crash.div_ceil(often)), self.chance(fault), self.chance(repeat));
        let has_effect = self.random.below(2) == 0;
        if self.chance(sleep.div_ceil(often)) {
            self.parties[me].sleeps_until = self.turns + self.random.below(SLEEP_TURNS_MAX);
        }
        // Which upload is abandoned when another fails depends on threads: such a failure is a crash.
        let crash = crash || fault && self.parties[me].blocks && op.puts_below("packs/");
        let fate = match has_effect {
            _ if !crash && !fault => {
                if repeat {
                    "twice"
                } else {
                    ""
                }
            }
            true => {
                if crash {
                    "done, crash"
                } else {
                    "done, reply lost"
                }
            }
            false => {
                if crash {
                    "crash"
                } else {
                    "failed"
                }
            }
        };
        let blank = if fate.is_empty() { "" } else { ": " };
        self.log.push(format!("{} {} {op}{blank}{fate}", self.now_ms, self.parties[me].name));
        if !crash && !fault {
            return match repeat {
                true => self.take(me, op).and_then(|_| self.take(me, op)),
                false => self.take(me, op),
            };
        }
        if has_effect {
            let _ = self.take(me, op); // nobody hears
        }
        (self.parties[me].is_dead, self.parties[me].is_hurt) = (crash, true);
        Err(gone())
    }

    /// Decides what becomes of an operation that was on its way when its actor crashed.
    fn strand(&mut self, me: usize, op: &Op) {
        if self.random.below(2) == 0 {
            self.log.push(format!("{} {} {op}: done, though crashed", self.now_ms, self.parties[me].name));
            let _ = self.take(me, op); // nobody hears
        }
    }
}

/// An operation at the gate.
pub(crate) struct Request {
    gate: Gate,
    me: usize,
    op: Op,
    ticket: Option<u64>,
}

impl Future for Request {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (gate, me, op) = (self.gate.clone(), self.me, self.op.clone());
        let mut guard = gate.lock();
        let state = &mut *guard;
        if state.parties[me].is_free {
            return Poll::Ready(state.take(me, &op));
        }
        let party = &mut state.parties[me];
        match self.ticket {
            Some(ticket) => match party.served.remove(&ticket) {
                Some(answer) => {
                    self.ticket = None;
                    return Poll::Ready(answer);
                }
                None => {
                    let waiting = party.pending.iter_mut().filter(|pending| pending.ticket == ticket);
                    waiting.for_each(|pending| pending.waker.clone_from(context.waker()));
                }
            },
            None if party.is_dead => return Poll::Ready(Err(gone())),
            None => {
                state.tickets += 1;
                self.ticket = Some(state.tickets);
                party.pending.push(Pending { ticket: state.tickets, op: op.clone(), waker: context.waker().clone() });
                state.arrive(me, &op);
            }
        }
        Poll::Pending
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.gate.lock();
            state.parties[self.me].pending.retain(|pending| pending.ticket != ticket);
            state.parties[self.me].served.remove(&ticket);
        }
    }
}

fn gone() -> Error {
    Error::Generic { store: "simulated", source: "503 injected".into() }
}
