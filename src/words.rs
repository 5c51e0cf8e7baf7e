//! Helpers for options that are written as words: `gaussian:0.125`, `threshold:0.5`.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A word to parse, and its option.
#[derive(Clone, Copy)]
pub(crate) struct Word<'a> {
    option: &'static str,
    text: &'a str,
    /// The valid words.
    choices: &'static str,
}

impl<'a> Word<'a> {
    pub(crate) const fn new(option: &'static str, text: &'a str, choices: &'static str) -> Self {
        Self {
            option,
            text,
            choices,
        }
    }

    /// Returns the name and the arguments after its colon.
    pub(crate) fn split(self) -> (&'a str, Option<&'a str>) {
        match self.text.trim().split_once(':') {
            Some((name, arguments)) => (name, Some(arguments)),
            None => (self.text.trim(), None),
        }
    }

    /// Parses `N` numbers that are separated by commas.
    pub(crate) fn numbers<T: FromStr, const N: usize>(self, arguments: &str) -> Result<[T; N]> {
        let numbers = arguments.split(',').map(|n| n.trim().parse().ok());
        let numbers: Option<Vec<T>> = numbers.collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.ok_or_else(|| self.unknown())
    }

    /// Returns the error for an invalid word.
    pub(crate) fn unknown(self) -> Error {
        Error::InvalidArgument {
            argument: self.option,
            value: format!("{:?}", self.text),
            problem: format!("the possible values are {}", self.choices),
        }
    }
}
