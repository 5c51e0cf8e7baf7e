//! The AWS profile: static credentials, region and endpoint in `~/.aws/credentials` and `~/.aws/config`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

/// Returns the settings of the profile that the environment chooses. Files that do not exist have no settings.
pub(super) fn settings() -> BTreeMap<String, String> {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let file = |variable: &str, name: &str| {
        let path =
            env::var_os(variable).map_or_else(|| home.join(".aws").join(name), PathBuf::from);
        fs::read_to_string(path).unwrap_or_default()
    };
    let profile = env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    let config = file("AWS_CONFIG_FILE", "config");
    let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let mut found = section(&config, &format!("profile {profile}"));
    if profile == "default" {
        found.extend(section(&config, "default"));
    }
    found.extend(section(&credentials, &profile));
    found
}

/// Returns the settings in a section of an INI file.
fn section(text: &str, name: &str) -> BTreeMap<String, String> {
    let mut inside = false;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[') {
            inside = header.trim_end_matches(']').trim() == name;
        } else if inside
            // Nested settings are indented.
            && !line.starts_with(char::is_whitespace)
            && !trimmed.starts_with(['#', ';'])
            && let Some((name, value)) = trimmed.split_once('=')
        {
            found.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_settings_of_the_section_are_read() {
        let text = "[default]\nregion = a\n# x = y\n[profile lab]\nregion=eu-1\ns3 =\n  max = 3\n[other]\nregion=c\n";
        let found = section(text, "profile lab");
        assert_eq!(found["region"], "eu-1");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(section(text, "missing").is_empty());
    }
}
