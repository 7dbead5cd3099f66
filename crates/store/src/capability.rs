//! Capabilities of files (capabilities(7), "File capability extended attribute versioning"): what the root of a user namespace gives
//! says whose they are (version 3), what the host's root gives does not (version 2). Archives have the latter.

/// The attribute's name.
const NAME: &str = "security.capability";
/// `struct vfs_cap_data` of `linux/capability.h`: a word with the version in its highest byte and flags in the lowest bit, two pairs of
/// words; version 3 has the root's number behind it. All little-endian.
const LENGTH_2: usize = 20;
const LENGTH_3: usize = 24;
const VERSION_2: u8 = 2;
const VERSION_3: u8 = 3;
/// Where the version is.
const VERSION: usize = 3;

/// Makes an attribute of an archive one for files of a container whose root has this number on the host.
pub(crate) fn to_container(name: &str, value: &mut Vec<u8>, root: u32) {
    if name == NAME && value.len() == LENGTH_2 && value[VERSION] == VERSION_2 {
        value[VERSION] = VERSION_3;
        value.extend_from_slice(&root.to_le_bytes());
    }
}

/// The reverse.
pub(crate) fn from_container(name: &str, value: &mut Vec<u8>, root: u32) {
    if name == NAME && value.len() == LENGTH_3 && value[VERSION] == VERSION_3 && value[LENGTH_2..] == root.to_le_bytes() {
        value[VERSION] = VERSION_2;
        value.truncate(LENGTH_2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_roots_own_are_translated() {
        let archived: Vec<u8> = [&[1, 0, 0, 2][..], &[0, 0x20], &[0; 14]].concat();
        let mut value = archived.clone();
        to_container(NAME, &mut value, 0x0403_0201);
        assert_eq!(value, [&[1, 0, 0, 3][..], &archived[4..], &[1, 2, 3, 4]].concat());
        let mut others = value.clone();
        from_container(NAME, &mut others, 7);
        assert_eq!(others, value);
        from_container(NAME, &mut value, 0x0403_0201);
        assert_eq!(value, archived);
        let mut other = archived.clone();
        to_container("user.capability", &mut other, 1);
        assert_eq!(other, archived);
    }
}
