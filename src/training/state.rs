//! States: where an epoch is, in memory and as a line of text.

use std::fmt;
use std::str::FromStr;

use super::plan::EpochPlan;
use super::shard::RankShard;
use super::subject::Subjects;
use crate::error::{Error, Result};

/// Where an epoch is: enough to go on from there, with other threads or on other ranks.
///
/// As text it is one line of ASCII that every later release reads:
///
/// ```
/// use voxpatch::training::LoaderState;
///
/// let text = "voxpatch-loader-1 epoch=3 position=40 plan=00000000000000ff subjects=0000000000000002";
/// let state: LoaderState = text.parse()?;
/// assert_eq!((state.epoch, state.position, state.plan, state.subjects), (3, 40, 255, 2));
/// assert_eq!(state.to_string(), text);
/// # Ok::<(), voxpatch::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderState {
    /// The epoch.
    pub epoch: u64,
    /// Patches that all ranks have taken together, as many as the epoch has at its end.
    pub position: u64,
    /// [`EpochPlan::fingerprint`]: what the position counts in.
    pub plan: u64,
    /// [`Subjects::fingerprint`]: what the plan's subjects are.
    pub subjects: u64,
}

const NAME: &str = "voxpatch-loader-1";

impl LoaderState {
    /// The same, or the start of the next epoch if nothing is left of this one for `share`.
    #[must_use]
    pub fn settled(self, plan: &EpochPlan, shard: RankShard) -> Self {
        let is_over = self.position > 0 && shard.end(self.position, plan.len()) <= self.position;
        if !is_over {
            return self;
        }
        Self {
            epoch: self.epoch.saturating_add(1),
            position: 0,
            ..self
        }
    }

    /// Checks that the state is of this plan and these subjects, and inside the epoch.
    pub(super) fn check(&self, plan: &EpochPlan, subjects: &dyn Subjects) -> Result<()> {
        let other = |what, saved, here| Err(Error::StateMismatch { what, saved, here });
        let (of_plan, of_subjects) = (plan.fingerprint(), subjects.fingerprint());
        if self.plan != of_plan {
            return other("a plan with the fingerprint", self.plan, of_plan);
        }
        if self.subjects != of_subjects {
            let what = "subjects with the fingerprint";
            return other(what, self.subjects, of_subjects);
        }
        if self.position > plan.len() {
            return Err(Error::InvalidArgument {
                argument: "saved position",
                value: self.position.to_string(),
                problem: format!("the epoch has {} patches", plan.len()),
            });
        }
        Ok(())
    }
}

impl fmt::Display for LoaderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            epoch,
            position,
            plan,
            subjects,
        } = self;
        write!(
            f,
            "{NAME} epoch={epoch} position={position} plan={plan:016x} subjects={subjects:016x}"
        )
    }
}

impl FromStr for LoaderState {
    type Err = Error;

    /// Reads what [`Display`](fmt::Display) writes, blanks around it ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for anything else.
    fn from_str(text: &str) -> Result<Self> {
        parsed(text).ok_or_else(|| Error::InvalidArgument {
            argument: "loader state",
            value: format!("{text:?}"),
            problem: format!(
                "it is written as `{NAME} epoch=E position=P plan=HEX subjects=HEX`, numbers below 2^64"
            ),
        })
    }
}

fn parsed(text: &str) -> Option<LoaderState> {
    let mut words = text.trim().split(' ');
    if words.next() != Some(NAME) {
        return None;
    }
    let mut next = |key: &str, radix: u32| {
        let digits = words.next()?.strip_prefix(key)?;
        // `from_str_radix` would take a sign.
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(digits, radix).ok().filter(|_| plain)
    };
    let state = LoaderState {
        epoch: next("epoch=", 10)?,
        position: next("position=", 10)?,
        plan: next("plan=", 16)?,
        subjects: next("subjects=", 16)?,
    };
    words.next().is_none().then_some(state)
}
