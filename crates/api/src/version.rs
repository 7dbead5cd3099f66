//! API versions, `MAJOR.MINOR`, compared number by number.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(pub u32, pub u32);

/// The newest that this server speaks, to who asks for it.
pub const NEWEST: Version = Version(1, 56);
/// What is spoken when no version is asked for, and what our own client speaks: that of docker 28, the last with fields that many
/// programs still read.
pub const SPOKEN: Version = Version(1, 51);
/// Below this a client is refused.
pub const OLDEST: Version = Version(1, 24);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Version, ()> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Version(major.parse().map_err(drop)?, minor.parse().map_err(drop)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!("1.9".parse::<Version>() < "1.24".parse());
        assert_eq!("1.51".parse(), Ok(SPOKEN));
        assert!("abc".parse::<Version>().is_err());
    }
}
