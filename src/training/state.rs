//! Loader states: the position in an epoch, also as a line of text.

use std::fmt;
use std::str::FromStr;

use super::plan::EpochPlan;
use super::shard::RankShard;
use super::subjects::Subjects;
use crate::error::{Error, Result};

/// The position in an epoch. A run can be resumed there, with other threads or on other ranks.
///
/// As text it is one line of ASCII, which every later release can read:
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
    /// The number of patches that all ranks have taken together.
    pub position: u64,
    /// The [fingerprint](EpochPlan::fingerprint) of the plan.
    pub plan: u64,
    /// The [fingerprint](Subjects::fingerprint) of the subjects.
    pub subjects: u64,
}

const NAME: &str = "voxpatch-loader-1";

impl LoaderState {
    /// Returns the start of the next epoch if `shard` has no patch left in this one, else `self`.
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

    /// Checks that the state belongs to this plan and these subjects, and lies inside the epoch.
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

    /// Parses the form that [`Display`](fmt::Display) writes, surrounding blanks ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for any other text.
    fn from_str(text: &str) -> Result<Self> {
        parsed(text).ok_or_else(|| Error::InvalidArgument {
            argument: "loader state",
            value: format!("{text:?}"),
            problem: format!(
                "the form is `{NAME} epoch=E position=P plan=HEX subjects=HEX`, with numbers below 2^64"
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
