//! The files of the AWS command line.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// What a profile can say, and how a setting is called.
const NAMES: [(&str, &str); 5] = [
    ("aws_access_key_id", "aws_access_key_id"),
    ("aws_secret_access_key", "aws_secret_access_key"),
    ("aws_session_token", "aws_session_token"),
    ("region", "aws_region"),
    ("endpoint_url", "aws_endpoint"),
];

/// The settings of the profile that `AWS_PROFILE` names, or of `default`, in `~/.aws/config` and `~/.aws/credentials`.
///
/// Keys that stand there are taken; a profile that only tells how to get some (SSO, roles) needs
/// `aws configure export-credentials --format env`.
pub(crate) fn settings() -> Vec<(String, String)> {
    let name = env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    let file = |variable: &str, usual: &str| match env::var_os(variable) {
        Some(path) => Some(PathBuf::from(path)),
        None => env::home_dir().map(|home| home.join(".aws").join(usual)),
    };
    let read =
        |path: Option<PathBuf>| path.and_then(|path: PathBuf| fs::read_to_string(Path::new(&path)).ok());
    let config = read(file("AWS_CONFIG_FILE", "config")).unwrap_or_default();
    let credentials = read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials")).unwrap_or_default();
    let titles = [format!("profile {name}"), name];
    let mut settings = of_section(&config, |title| titles.iter().any(|t| t == title));
    let keys = of_section(&credentials, |title| title == titles[1]);
    if keys.iter().any(|(name, _)| name == "aws_access_key_id") {
        settings.retain(|(name, _)| !NAMES[..3].iter().any(|(_, key)| key == name));
    }
    settings.extend(keys);
    settings
}

/// The settings in the sections whose title is wanted. (Lines of nested settings are indented; none of them is known here.)
fn of_section(text: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut inside = false;
    let mut settings = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = is_wanted(title.trim());
            continue;
        }
        if !inside || line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        if let Some((_, setting)) = NAMES.iter().find(|(known, _)| *known == name.trim()) {
            settings.push(((*setting).to_owned(), value.trim().to_owned()));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_no_other() {
        let text = "[default]\nregion = eu-west-1\n# aws_session_token = no\n[profile other]\nregion=us-east-2\n\
                    s3 =\n  endpoint_url = nested\nendpoint_url = http://here\noutput = json\n";
        let of = |title: &str| of_section(text, |t| t == title);
        assert_eq!(of("default"), [("aws_region".to_owned(), "eu-west-1".to_owned())]);
        let expected = [("aws_region", "us-east-2"), ("aws_endpoint", "http://here")];
        assert_eq!(of("profile other"), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }
}
