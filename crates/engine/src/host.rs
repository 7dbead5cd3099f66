//! What images this host can run.

use std::fs;

use dhow_oci::Platform;

/// Kernel interface by which programs of other processors are run by an emulator (binfmt_misc in the kernel's documentation).
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";
/// Emulators as QEMU's packages register them, with what they run.
const EMULATORS: [(&str, &str, Option<&str>); 10] = [
    ("qemu-x86_64", "amd64", None),
    ("qemu-aarch64", "arm64", None),
    ("qemu-arm", "arm", Some("v7")),
    ("qemu-i386", "386", None),
    ("qemu-riscv64", "riscv64", None),
    ("qemu-ppc64le", "ppc64le", None),
    ("qemu-s390x", "s390x", None),
    ("qemu-mips64el", "mips64le", None),
    ("qemu-mips64", "mips64", None),
    ("qemu-loongarch64", "loong64", None),
];

/// This host's platform with the most that its processor can do, as dockerd tells it: `linux/amd64/v3`.
pub(crate) fn detected() -> Platform {
    Platform { variant: variants().last().map(|variant| (*variant).to_owned()), ..Platform::host() }
}

/// Whether the processor itself runs an image for a platform.
pub(crate) fn is_native(platform: &Platform) -> bool {
    let host = Platform::host();
    let (own, other) = (host.architecture.as_str(), platform.architecture.as_str());
    platform.os == host.os && (own == other || matches!((own, other), ("amd64", "386") | ("arm64", "arm")))
}

/// All platforms whose images run here: the host's own first, and those of registered emulators last.
pub fn supported_platforms() -> Vec<Platform> {
    let host = Platform::host();
    let mut platforms = vec![host.clone()];
    let mut add = |architecture: &str, variant: Option<&str>| {
        let variant = variant.map(str::to_owned);
        let platform = Platform { architecture: architecture.to_owned(), variant, ..host.clone() };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    };
    // The first one is what the name without a variant means.
    variants().iter().skip(1).for_each(|variant| add(&host.architecture, Some(variant)));
    if host.architecture == "amd64" {
        add("386", None);
    }
    for (name, architecture, variant) in EMULATORS {
        let is_enabled = |text: String| text.lines().next() == Some("enabled");
        if fs::read_to_string(format!("{BINFMT}/{name}")).is_ok_and(is_enabled) {
            add(architecture, variant);
        }
    }
    platforms
}

/// The levels of x86-64 that the processor has, from the least (x86-64 psABI, "Microarchitecture levels").
#[cfg(target_arch = "x86_64")]
fn variants() -> &'static [&'static str] {
    macro_rules! all {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    const LEVELS: [&str; 4] = ["v1", "v2", "v3", "v4"];
    let has_second = all!("cmpxchg16b" "popcnt" "sse3" "ssse3" "sse4.1" "sse4.2");
    let has_third = has_second && all!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe" "xsave");
    let has_fourth = has_third && all!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
    &LEVELS[..1 + [has_second, has_third, has_fourth].iter().filter(|has| **has).count()]
}

#[cfg(not(target_arch = "x86_64"))]
fn variants() -> &'static [&'static str] {
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_comes_first() {
        let platforms = supported_platforms();
        assert_eq!(platforms[0], Platform::host());
        assert!(platforms.iter().enumerate().all(|(place, platform)| !platforms[..place].contains(platform)));
        assert!(detected().serves(&Platform::host()));
    }
}
