//! What is left when servers are killed, and many push at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dhow_oci::Digest;
use dhow_testkit::http::request;
use dhow_testkit::{Served, text};
use serde_json::json;

use crate::{BINARY, MANIFEST, content, manifest_of, put_blob, served};

/// How many times something is killed; the long form is `DHOW_TEST_KILLS=200`.
fn kills() -> u64 {
    std::env::var("DHOW_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(12)
}

#[test]
fn killed_in_the_middle_uploads_go_on() {
    let (directory, mut registry) = served(&[]);
    let blob = content(6, 4 << 20);
    let digest = Digest::of(&blob);
    for round in 0..kills() {
        let repository = format!("round-{round}");
        let begun = registry.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
        let upload = begun.header("location").to_owned();
        let (address, path, part) = (registry.address, upload.clone(), blob[..3 << 20].to_vec());
        let sending = std::thread::spawn(move || request(address, "PATCH", &path, &[], &part).is_ok());
        std::thread::sleep(Duration::from_micros(content(round, 2).iter().map(|byte| u64::from(*byte) * 25).sum()));
        registry.crash();
        let _ = sending.join();
        let state = registry.get(&upload);
        assert_eq!(state.status, 204, "the upload is known: {}", state.text());
        let last: usize = state.header("range").trim_start_matches("0-").parse().unwrap();
        // Nothing and one byte look the same.
        let at = if last == 0 { 0 } else { last + 1 };
        assert!(at <= 3 << 20);
        let range = format!("{at}-{}", blob.len() - 1);
        let done = registry.ask("PUT", &format!("{upload}?digest={digest}"), &[("Content-Range", &range)], &blob[at..]);
        assert_eq!(done.status, 201, "{}", done.text());
        assert_eq!(registry.get(&format!("/v2/{repository}/blobs/{digest}")).body.len(), blob.len());
    }
    registry.stop();
    assert_eq!(std::fs::read_dir(directory.path().join("registry/uploads")).unwrap().count(), 0);
}

#[test]
fn a_hundred_bring_the_same_blob() {
    let (directory, registry) = served(&[]);
    let blob = content(7, 1 << 20);
    let digest = Digest::of(&blob);
    std::thread::scope(|scope| {
        for number in 0..100 {
            let (registry, blob) = (&registry, &blob);
            scope.spawn(move || {
                let repository = format!("many/{}", number % 10);
                assert_eq!(put_blob(registry, &repository, blob).status, 201);
            });
        }
    });
    for number in 0..10 {
        assert_eq!(registry.get(&format!("/v2/many/{number}/blobs/{digest}")).body, blob);
    }
    let files =
        std::process::Command::new("find").arg(directory.path().join("registry")).args(["-size", "+1000k"]).output().unwrap();
    assert_eq!(text(&files.stdout).lines().count(), 1, "{}", text(&files.stdout));
}

/// Seconds of the storm; the long form is `DHOW_TEST_STORM=600`.
fn storm() -> Duration {
    let seconds = std::env::var("DHOW_TEST_STORM").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

/// Pushes, removals and kills, while garbage is collected all the time.
#[test]
fn no_manifest_misses_a_blob() {
    let (directory, mut registry) = served(&["--gc-grace", "0s", "--gc-interval", "10ms"]);
    let data = directory.path().join("registry");
    let config = b"{}".as_slice();
    let end = Instant::now() + storm();
    let (pushed, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut rounds = 0;
    while Instant::now() < end {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in 0..6u64 {
                let (over, pushed, refused, address) = (&over, &pushed, &refused, registry.address);
                scope.spawn(move || {
                    let mut number = client * 1_000_000 + rounds * 1000;
                    let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
                        request(address, method, path, headers, body).ok()
                    };
                    while !over.load(Ordering::Relaxed) {
                        number += 1;
                        // Few repositories and few layers: who removes and who pushes meet.
                        let (repository, layer) = (format!("storm/{}", number % 3), content(number % 7, 5000));
                        let complete = || -> Option<u16> {
                            for blob in [config, &layer] {
                                if ask("HEAD", &format!("/v2/{repository}/blobs/{}", Digest::of(blob)), &[], b"")?.status != 200 {
                                    let begun = ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"")?;
                                    ask("PUT", &format!("{}?digest={}", begun.header("location"), Digest::of(blob)), &[], blob)?;
                                }
                            }
                            let mut manifest = manifest_of(config, &[&layer]);
                            manifest["annotations"] = json!({ "number": (number % 20).to_string() });
                            let manifest = manifest.to_string();
                            let put = ask(
                                "PUT",
                                &format!("/v2/{repository}/manifests/t{}", number % 5),
                                &[("Content-Type", MANIFEST)],
                                manifest.as_bytes(),
                            )?;
                            if number % 3 == 0 {
                                ask(
                                    "DELETE",
                                    &format!("/v2/{repository}/manifests/{}", Digest::of(manifest.as_bytes())),
                                    &[],
                                    b"",
                                )?;
                            }
                            Some(put.status)
                        };
                        match complete() {
                            Some(201) => pushed.fetch_add(1, Ordering::Relaxed),
                            _ => refused.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(1000));
            registry.kill();
            over.store(true, Ordering::Relaxed);
        });
        registry.crash();
        // Whatever is listed is whole.
        for repository in 0..3 {
            let tags = registry.get(&format!("/v2/storm/{repository}/tags/list"));
            for tag in tags.json()["tags"].as_array().into_iter().flatten() {
                let found = registry.get(&format!("/v2/storm/{repository}/manifests/{}", tag.as_str().unwrap()));
                assert_eq!(found.status, 200);
                let manifest = found.json();
                for part in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
                    let digest = part["digest"].as_str().unwrap();
                    let blob = registry.get(&format!("/v2/storm/{repository}/blobs/{digest}"));
                    assert_eq!((blob.status, Digest::of(&blob.body).to_string().as_str()), (200, digest));
                }
            }
        }
        rounds += 1;
    }
    println!("{} pushed, {} refused, {rounds} kills", pushed.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(pushed.load(Ordering::Relaxed) > 20 * rounds, "{}", registry.log());
    registry.stop();
    // Every file is a blob that somebody has: what a killed server leaves, the next one removes.
    let mut registry = Served::start(BINARY, &data, &["--gc-grace", "0s", "--gc-interval", "10ms"]);
    let files = || std::process::Command::new("find").arg(data.join("blobs")).args(["-type", "f"]).output().unwrap().stdout;
    dhow_testkit::wait_until("what nobody has is gone", || text(&files()).lines().count() <= 8);
    assert!(registry.stop());
}
