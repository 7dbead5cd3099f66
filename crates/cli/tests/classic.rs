//! `POST /build`, as clients speak it that know nothing of BuildKit: what they send is read by others' rules, too.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use dhow_testkit::{Sandbox, sandboxed, text};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// An archive of a Dockerfile and more files, each with its owner.
fn archive(dockerfile: &str, files: &[(&str, &str, u64)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content, owner) in [("Dockerfile", dockerfile, 0)].iter().chain(files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(*owner);
        header.set_gid(*owner);
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Sends the pieces of a body, one after the other, and reads the answer when all are sent.
fn build(sandbox: &Sandbox, parameters: &[(&str, &str)], pieces: &[&[u8]]) -> String {
    let encoded = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC).collect::<String>()));
    let path = format!("/build?{}", encoded.collect::<Vec<_>>().join("&"));
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    for piece in pieces {
        write!(stream, "{:x}\r\n", piece.len()).unwrap();
        stream.write_all(&[piece, &b"\r\n"[..]].concat()).unwrap();
        // Long enough for an answer to be on its way.
        std::thread::sleep(Duration::from_millis(100));
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// The texts of the stream's messages.
fn told(said: &str) -> String {
    let messages = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages.filter_map(|message| Some(message["stream"].as_str()?.to_owned())).collect()
}

#[test]
fn an_answer_is_read_by_who_still_writes() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let whole = archive("FROM busybox\nCMD x\n", &[]);
    let zeros = [0; 4096];
    let said = build(&sandbox, &[("t", "x")], &[&whole, &zeros, &zeros]);
    assert!(said.contains("Successfully tagged x:latest"), "{said}");
    let said = build(&sandbox, &[("platform", "a/b/c/d")], &[&whole, &whole, &whole]);
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("cannot parse platform specifier"), "{said}");
    sandbox.finish();
}

#[test]
fn a_context_may_end_with_its_last_file() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let whole = archive("FROM busybox\nCOPY f /f\nRUN cat /f\n", &[("f", "the last\n", 0)]);
    let end = whole.windows(9).position(|window| window == b"the last\n").unwrap() + 9;
    assert!(build(&sandbox, &[], &[&whole[..end]]).contains("the last"));
    let said = build(&sandbox, &[], &[&whole[..end - 1]]);
    assert!(said.contains("Error processing tar file"), "{said}");
    sandbox.finish();
}

#[test]
fn files_of_an_archive_belong_to_whom_it_says_but_not_by_the_classic_way() {
    let mut sandbox = sandboxed!();
    let whole = archive("FROM busybox\nCOPY f /f\nRUN stat -c 'whose %u:%g' /f\n", &[("f", "", 1000)]);
    let mut client = sandbox.command(&["build", "--progress=plain", "-"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(&whole).unwrap();
    let done = client.wait_with_output().unwrap();
    assert!(text(&done.stderr).contains("whose 1000:1000"), "{}", text(&done.stderr));
    sandbox.start_daemon();
    let said = build(&sandbox, &[], &[&whole]);
    assert!(told(&said).contains("whose 0:0"), "{said}");
    sandbox.finish();
}

#[test]
fn what_is_asked_for_is_done_or_refused() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let plain = archive("FROM busybox AS a\nRUN hostname\nFROM busybox\nRUN echo never\n", &[]);
    // Only the stages that are wanted count.
    let arguments = ("buildargs", r#"{"BUILDKIT_SANDBOX_HOSTNAME":"mine"}"#);
    let said = told(&build(&sandbox, &[("target", "a"), arguments], &[&plain]));
    assert!(said.contains("Step 1/2 : FROM busybox AS a\nStep 2/2 : RUN hostname\nmine\n"), "{said}");
    assert!(!said.contains("never"), "{said}");
    for (name, value, why) in [
        ("securityopt", r#"["a=b"]"#, "security options are not supported on linux"),
        ("isolation", "hyperv", r#"unsupported isolation: \"hyperv\""#),
        ("extrahosts", "x:notip", r#"invalid IP address in add-host: \"notip\""#),
    ] {
        let said = build(&sandbox, &[(name, value)], &[&plain]);
        assert!(said.starts_with("HTTP/1.1 400") && said.contains(why), "{said}");
    }
    // As dockerd's classic builder takes them.
    let id = sandbox.ok(&["images", "-q", "busybox"]);
    let said = build(&sandbox, &[], &[&archive(&format!("FROM {id}\nRUN echo known\n"), &[])]);
    assert!(told(&said).contains("known\n"), "{said}");
    let said = build(&sandbox, &[], &[&archive("", &[])]);
    assert!(said.contains("the Dockerfile (Dockerfile) cannot be empty"), "{said}");
    sandbox.finish();
}

#[test]
fn a_quiet_build_that_fails_says_all() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let failing = archive("FROM busybox\nRUN echo out; exit 3\n", &[]);
    let said = build(&sandbox, &[("q", "1")], &[&failing]);
    assert!(told(&said).contains("Step 2/2 : RUN echo out; exit 3\nout\n"), "{said}");
    assert!(said.contains("returned a non-zero code: 3"), "{said}");
    let said = build(&sandbox, &[("q", "1")], &[&archive("FROM busybox\nRUN echo out\n", &[])]);
    assert!(told(&said).starts_with("sha256:") && !said.contains("Step"), "{said}");
    sandbox.finish();
}
