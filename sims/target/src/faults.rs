//! Faults on request: rules that say which call of an array's own interface goes wrong, and how.
//!
//! The simulator asks [`Faults::take`] with the name of each call before it begins; names are the simulator's (method and
//! path, or a command line). Tests set rules through the handle, programs through [`Faults::set_text`] (JSON).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is carried out after this time.
    DelayMs(u64),
    /// It fails with the array's own words for this trouble and nothing is done. The text is the array's error code.
    FailBefore(String),
    /// It is carried out, then it answers with this error.
    FailAfter(String),
    /// The connection ends before anything is done.
    DropBefore,
    /// It is carried out and the connection ends without an answer.
    DropAfter,
    /// There is no space for what it wants.
    NoSpace,
    /// Any other trouble that one simulator knows, by its name.
    Other(String),
}

/// Which calls, and what happens to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Part of the call's name; empty matches every call.
    #[serde(default)]
    pub call: String,
    /// Calls that match are let through this many times before.
    #[serde(default)]
    pub skip: u64,
    /// Then this many are hit; none: all.
    #[serde(default)]
    pub times: Option<u64>,
    pub action: Action,
}

impl Rule {
    /// Hits the first matching call, once.
    pub fn once(call: &str, action: Action) -> Rule {
        Rule { call: call.to_string(), skip: 0, times: Some(1), action }
    }

    /// Hits the call after `skip` matching ones, once.
    pub fn nth(call: &str, skip: u64, action: Action) -> Rule {
        Rule { call: call.to_string(), skip, times: Some(1), action }
    }

    /// Hits all matching calls.
    pub fn always(call: &str, action: Action) -> Rule {
        Rule { call: call.to_string(), skip: 0, times: None, action }
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<String>,
}

/// The rules of one simulator and the calls that it saw.
#[derive(Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule. The first that hits a call decides.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// Replaces all rules by a JSON array of them.
    pub fn set_text(&self, text: &str) -> std::result::Result<(), serde_json::Error> {
        let rules = serde_json::from_str(text)?;
        self.state().rules = rules;
        Ok(())
    }

    /// Calls since the last time this was asked, in order: the points at which faults can be injected.
    pub fn drain_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().seen)
    }

    /// What is to happen to this call; none: nothing.
    pub fn take(&self, call: &str) -> Option<Action> {
        let mut state = self.state();
        state.seen.push(call.to_string());
        let mut hit = None;
        for rule in state.rules.iter_mut().filter(|rule| call.contains(&rule.call)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if hit.is_none() && rule.times != Some(0) {
                rule.times = rule.times.map(|times| times - 1);
                hit = Some(rule.action.clone());
            }
        }
        state.rules.retain(|rule| rule.times != Some(0));
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Faults, Rule};

    #[test]
    fn the_nth_call_is_hit_and_only_that() {
        let faults = Faults::default();
        faults.add(Rule::nth("POST /luns", 1, Action::DropAfter));
        let hits: Vec<bool> = ["GET /luns", "POST /luns", "POST /luns", "POST /luns"]
            .iter()
            .map(|call| faults.take(call).is_some())
            .collect();
        assert_eq!(hits, [false, false, true, false]);
        assert_eq!(faults.drain_calls().len(), 4);
        faults.set_text(r#"[{"call":"x","action":{"fail_before":"7"}},{"action":"no_space","times":1}]"#).unwrap();
        assert_eq!(faults.take("x"), Some(Action::FailBefore("7".into())));
        assert_eq!((faults.take("y"), faults.take("y")), (Some(Action::NoSpace), None));
        assert!(faults.set_text("[{\"action\":\"nonsense\"}]").is_err());
    }
}
