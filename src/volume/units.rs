//! Units of length, by their names in files.
//!
//! Every reader uses this table, so that one word means one length in every format. A word that is not in the table is
//! an error of the reader that found it; it is never assumed to mean millimeters.

/// A unit that a file may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    /// A length in millimeters.
    Millimeters(f64),
    /// A word for lengths without a unit, like `pixel`: they are used unchanged.
    None,
}

impl Unit {
    /// Returns the factor that converts lengths in this unit to millimeters.
    pub(super) const fn factor(self) -> f64 {
        match self {
            Self::Millimeters(factor) => factor,
            Self::None => 1.0,
        }
    }
}

/// Symbols. They are compared exactly, or in lower case if they have only capitals.
const SYMBOLS: [(&str, f64); 21] = [
    ("fm", 1e-12),
    ("pm", 1e-9),
    ("nm", 1e-6),
    ("um", 1e-3),
    ("µm", 1e-3),
    ("\\u00b5m", 1e-3),
    ("\\u03bcm", 1e-3),
    ("Âµm", 1e-3),
    ("mm", 1.0),
    ("cm", 10.0),
    ("dm", 100.0),
    ("m", 1e3),
    ("hm", 1e5),
    ("km", 1e6),
    ("å", 1e-7),
    ("in", 25.4),
    ("\"", 25.4),
    ("ft", 304.8),
    ("yd", 914.4),
    ("mi", 1_609_344.0),
    ("µ", 1e-3),
];

/// Words, in lower case and without a plural s.
const WORDS: [(&str, f64); 11] = [
    ("micron", 1e-3),
    ("angstrom", 1e-7),
    ("angstroem", 1e-7),
    ("ångström", 1e-7),
    ("ångstrom", 1e-7),
    ("inch", 25.4),
    ("foot", 304.8),
    ("feet", 304.8),
    ("yard", 914.4),
    ("mile", 1_609_344.0),
    ("parsec", 3.085_677_581_491_367e19),
];

/// Prefixes of `meter`, with their powers of ten.
const PREFIXES: [(&str, i32); 21] = [
    ("yocto", -24),
    ("zepto", -21),
    ("atto", -18),
    ("femto", -15),
    ("pico", -12),
    ("nano", -9),
    ("micro", -6),
    ("milli", -3),
    ("centi", -2),
    ("deci", -1),
    ("", 0),
    ("deca", 1),
    ("hecto", 2),
    ("kilo", 3),
    ("mega", 6),
    ("giga", 9),
    ("tera", 12),
    ("peta", 15),
    ("exa", 18),
    ("zetta", 21),
    ("yotta", 24),
];

/// Words for lengths that were not measured.
const NOT_MEASURED: [&str; 9] = [
    "", "?", "???", "none", "pixel", "px", "voxel", "index", "unitless",
];

/// Returns the unit called `name`; `None` if the word is unknown.
pub(super) fn unit(name: &str) -> Option<Unit> {
    let name = name.trim().trim_end_matches('\0');
    // Both characters that look like a mu are treated as one, and so are both that look like an angstrom.
    let same = |c: char| match c {
        'μ' => 'µ',
        '\u{212b}' => 'Å',
        c => c,
    };
    let name: String = name.chars().take(40).map(same).collect();
    let lower = name.to_lowercase().replace('μ', "µ");
    let symbol = |text: &str| SYMBOLS.iter().find(|(symbol, _)| *symbol == text);
    // "Mm" would be a thousand kilometers, and "Nm" is not a length: symbols in mixed case are not converted to lower
    // case.
    let one_case =
        name.starts_with('\\') || name.chars().count() == 1 || name == name.to_uppercase();
    let found = symbol(&name).or_else(|| symbol(&lower).filter(|_| one_case && name != "M"));
    if let Some(&(_, factor)) = found {
        return Some(Unit::Millimeters(factor));
    }
    let singular = lower
        .strip_suffix("es")
        .filter(|word| word.ends_with("inch"));
    let singular = singular
        .or_else(|| lower.strip_suffix('s').filter(|word| !word.is_empty()))
        .unwrap_or(&lower);
    if [lower.as_str(), singular]
        .iter()
        .any(|word| NOT_MEASURED.contains(word) && (*word == lower || !word.is_empty()))
    {
        return Some(Unit::None);
    }
    if let Some((_, factor)) = WORDS.iter().find(|(word, _)| *word == singular) {
        return Some(Unit::Millimeters(*factor));
    }
    let stem = ["meter", "metre"]
        .iter()
        .find_map(|end| singular.strip_suffix(end))?;
    let stem = stem.trim_end_matches(['-', ' ', '_']);
    let (_, power) = PREFIXES.iter().find(|(prefix, _)| *prefix == stem)?;
    // Parsing the digits gives the nearest number; computing a power may not.
    let factor = format!("1e{}", power + 3).parse().ok()?;
    Some(Unit::Millimeters(factor))
}

/// Returns the OME-Zarr name of the unit of `factor` millimeters.
pub(super) fn name(factor: f64) -> Option<&'static str> {
    const NAMES: [(f64, &str); 9] = [
        (1e-9, "picometer"),
        (1e-7, "angstrom"),
        (1e-6, "nanometer"),
        (1e-3, "micrometer"),
        (1.0, "millimeter"),
        (10.0, "centimeter"),
        (25.4, "inch"),
        (1e3, "meter"),
        (1e6, "kilometer"),
    ];
    let found = NAMES
        .iter()
        .find(|(own, _)| own.to_bits() == factor.to_bits());
    found.map(|&(_, name)| name)
}

/// Converts a length to units of `factor` millimeters. Of the numbers that convert back to exactly the same length,
/// returns the one with the fewest digits.
pub(super) fn in_units(millimetres: f64, factor: f64) -> f64 {
    let near = millimetres / factor;
    let digits = |n: &f64| n.to_string().len();
    let close = [near, near.next_up(), near.next_down()];
    let exact = close
        .into_iter()
        .filter(|n| (n * factor).to_bits() == millimetres.to_bits());
    exact.min_by_key(digits).unwrap_or(near)
}

/// Returns the error message for a word that is not a unit.
pub(super) fn unknown(word: &str) -> String {
    format!(
        "the unit {:?} is not a known unit of length (write mm, um, nm, angstrom or another metric unit, \
         or none)",
        super::format::excerpt(word)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_the_same_by_every_name() {
        let of_a_meter = |factor: f64, names: &[&str]| {
            for name in names {
                assert_eq!(unit(name), Some(Unit::Millimeters(factor)), "{name}");
            }
        };
        of_a_meter(
            1e-3,
            &[
                "micrometer",
                "micrometre",
                "Micrometer",
                "MICROMETERS",
                "micron",
                "microns",
                "Microns",
                "um",
                "UM",
                "\u{b5}m",
                "\u{3bc}m",
                "\\u00B5m",
                "\u{b5}",
                " um ",
                "micro-meter",
            ],
        );
        of_a_meter(1e-6, &["nanometer", "nanometers", "Nanometre", "nm", "NM"]);
        of_a_meter(
            1e-7,
            &[
                "angstrom",
                "Angstroms",
                "\u{c5}",
                "\u{212b}",
                "\u{c5}ngstr\u{f6}m",
            ],
        );
        of_a_meter(
            1.0,
            &[
                "millimeter",
                "millimetre",
                "Millimeters",
                "mm",
                "MM",
                "mm\0\0",
            ],
        );
        of_a_meter(10.0, &["centimeter", "cm", "CM"]);
        of_a_meter(100.0, &["decimeter"]);
        of_a_meter(1e3, &["meter", "metre", "Meters", "m"]);
        of_a_meter(1e6, &["kilometer", "km"]);
        of_a_meter(25.4, &["inch", "inches", "Inch", "in"]);
        of_a_meter(304.8, &["foot", "feet"]);
        of_a_meter(1e-9, &["picometer", "pm"]);
    }

    #[test]
    fn lengths_go_through_millimeters_and_back() {
        for word in [
            "angstrom",
            "nanometer",
            "micrometer",
            "millimeter",
            "centimeter",
            "inch",
            "meter",
        ] {
            let factor = unit(word).unwrap().factor();
            assert_eq!(name(factor), Some(word));
            for length in [0.1, 0.3, 5.0, 0.65, 1.25, 3000.0, 0.007, -20.2] {
                assert_eq!(in_units(length * factor, factor), length, "{length} {word}");
            }
        }
        assert_eq!(name(2.0), None);
    }

    #[test]
    fn words_for_no_unit_give_none_and_others_are_unknown() {
        for name in [
            "", " ", "pixel", "Pixels", "voxel", "px", "???", "?", "none",
        ] {
            assert_eq!(unit(name), Some(Unit::None), "{name}");
        }
        for name in [
            "Mm", "Nm", "Pm", "M", "mM", "second", "s", "furlong", "mmm", "parrot", "micro", "m2",
            "mm^2", "meterr", "xmeter", "A", "uM",
        ] {
            assert_eq!(unit(name), None, "{name}");
        }
        assert!(unknown("furlong").contains("\"furlong\""));
    }
}
