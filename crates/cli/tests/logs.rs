//! What containers print: whole, in order, and handed on by log drivers.

use std::io::{Read, Write};
use std::process::Stdio;

use dhow_testkit::{sandboxed, text, wait_until};

#[test]
fn a_large_output_is_whole() {
    let sandbox = sandboxed!();
    let command = "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done";
    let output = sandbox.run(&["run", "--name", "big", "--network", "none", "busybox", "sh", "-c", command]);
    let expected: String = (0..200_000).map(|number| format!("line {number}\n")).collect();
    assert!(text(&output.stdout) == expected, "attached output differs");
    let logs = sandbox.run(&["logs", "big"]);
    assert!(text(&logs.stdout) == expected, "logs differ");
    assert_eq!(sandbox.ok(&["logs", "--tail", "2", "big"]), "line 199998\nline 199999");
    sandbox.finish();
}

#[test]
fn a_slow_reader_gets_all_of_a_container_that_is_removed() {
    let sandbox = sandboxed!();
    for _ in 0..5 {
        let file = sandbox.path("id");
        let _ = std::fs::remove_file(&file);
        let args = ["run", "--rm", "--network", "none", "--cidfile", file.to_str().unwrap()];
        let write = ["busybox", "sh", "-c", "head -c 900000 /dev/zero"];
        let mut child = sandbox.command(&[&args[..], &write[..]].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        wait_until("the container is made", || std::fs::read_to_string(&file).is_ok_and(|id| id.len() == 64));
        let id = std::fs::read_to_string(&file).unwrap();
        // Ended, and maybe removed, long before its output is read; more than this would hold it up.
        wait_until("the container has ended", || {
            let state = sandbox.run(&["inspect", "-f", "{{.State.Status}}", &id]);
            !state.status.success() || text(&state.stdout) == "exited\n"
        });
        let mut all = Vec::new();
        output.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 900_000);
        wait_until("the command ends", || child.try_wait().unwrap().is_some());
    }
    sandbox.finish();
}

#[test]
fn log_drivers_hand_lines_on_and_every_log_can_be_read() {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixDatagram;
    let sandbox = sandboxed!();
    let patience = Some(std::time::Duration::from_secs(10));
    let run = |name: &str, options: &[&str]| {
        let program = ["busybox", "sh", "-c", "echo out; echo err >&2"];
        sandbox.ok(&[&["run", "--name", name, "--network", "none"], options, &program].concat())
    };
    let mut buffer = vec![0; 65536];

    let path = sandbox.path("syslog");
    let syslog = UnixDatagram::bind(&path).expect("the socket can be made");
    syslog.set_read_timeout(patience).expect("a timeout can be set");
    let address = format!("syslog-address=unixgram://{}", path.display());
    let options =
        ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "syslog-format=rfc5424", "--log-opt", "tag=x-{{.Name}}"];
    run("by-syslog", &options);
    let mut lines: Vec<String> = (0..2)
        .map(|_| {
            let length = syslog.recv(&mut buffer).expect("a line arrives");
            text(&buffer[..length])
        })
        .collect();
    lines.sort_unstable();
    assert!(lines[0].starts_with("<27>1 ") && lines[0].ends_with(" x-by-syslog - err"), "{lines:?}");
    assert!(lines[1].starts_with("<30>1 ") && lines[1].ends_with(" x-by-syslog - out"), "{lines:?}");

    let gelf = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    gelf.set_read_timeout(patience).expect("a timeout can be set");
    let address = format!("gelf-address=udp://{}", gelf.local_addr().expect("it is bound"));
    run("squeezed", &["--log-driver", "gelf", "--log-opt", &address]);
    for _ in 0..2 {
        gelf.recv(&mut buffer).expect("a line arrives");
        assert_eq!(buffer[..2], [0x1f, 0x8b], "as Docker's driver sends it");
    }
    let plain = "gelf-compression-type=none";
    let options =
        ["--log-driver", "gelf", "--log-opt", &address, "--log-opt", plain, "--log-opt", "labels=role", "-l", "role=web"];
    run("by-gelf", &options);
    let length = gelf.recv(&mut buffer).expect("a line arrives");
    let line = text(&buffer[..length]);
    for part in [r#""version":"1.1""#, r#""_container_name":"by-gelf""#, r#""_role":"web""#, r#""short_message":"#] {
        assert!(line.contains(part), "{part} in {line}");
    }

    let fluentd = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = format!("fluentd-address={}", fluentd.local_addr().expect("it is bound"));
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = fluentd.accept().expect("somebody connects");
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut all).expect("the stream ends");
        all
    });
    run("by-fluentd", &["--log-driver", "fluentd", "--log-opt", &address, "--log-opt", "tag=app"]);
    let all = reader.join().expect("the stream was read");
    let has = |part: &[u8]| all.windows(part.len()).any(|bytes| bytes == part);
    assert!(has(b"\xdb\0\0\0\x03app") && has(b"/by-fluentd") && has(b"out") && has(b"stderr"));

    let address = format!("gelf-address=udp://{}", gelf.local_addr().expect("it is bound"));
    run("not-kept", &["--log-driver", "gelf", "--log-opt", &address, "--log-opt", "cache-disabled=true"]);
    let refused = sandbox.fails(&["logs", "not-kept"]);
    assert!(refused.1.contains("configured logging driver does not support reading"), "{}", refused.1);
    run("by-local", &["--log-driver", "local", "--log-opt", "max-size=1m"]);
    for name in ["by-syslog", "by-gelf", "by-fluentd", "by-local"] {
        let output = sandbox.run(&["logs", name]);
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".to_owned(), "err\n".to_owned()), "{name}");
        assert_eq!(sandbox.ok(&["inspect", "-f", "[{{.LogPath}}]", name]), "[]");
    }

    // Nobody listens; what is wrong in what was asked for.
    let closed = ["run", "--rm", "--log-driver", "fluentd", "--log-opt", "fluentd-address=127.0.0.1:1", "busybox", "true"];
    let refused = sandbox.fails(&closed);
    assert!(refused.1.contains("failed to initialize logging driver: ") && refused.0 == 125, "{refused:?}");
    sandbox.ok(&[&["run", "--rm", "--log-opt", "fluentd-async=true"], &closed[2..]].concat());
    for (options, why) in [
        (&["--log-driver", "nosuch"][..], "error looking up logging plugin nosuch: plugin \"nosuch\" not found"),
        (&["--log-driver", "awslogs"], "the logging driver awslogs is not supported"),
        (&["--log-driver", "gelf"], "gelf-address is a required parameter"),
        (&["--log-driver", "syslog", "--log-opt", "nosuch=1"], "unknown log opt 'nosuch' for syslog log driver"),
        (&["--log-driver", "syslog", "--log-opt", "syslog-facility=x"], "invalid syslog facility"),
    ] {
        let refused = sandbox.fails(&[&["create"], options, &["busybox"]].concat());
        assert!(refused.1.contains(why), "{options:?}: {}", refused.1);
    }
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        let refused = sandbox.fails(&["run", "--rm", "--log-driver", "journald", "busybox", "true"]);
        assert!(refused.1.contains("journald is not enabled on this host"), "{}", refused.1);
    }
    sandbox.finish();
}

/// Docker's clients replay by reading the log themselves; docker-py and others ask for both at once.
#[test]
fn what_is_replayed_and_what_follows_fit_together() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    // Rotated all the time: five files of some hundred lines.
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; read x; echo $x";
    let options = ["--log-opt", "max-size=20k", "--log-opt", "max-file=5"];
    for round in 0..12 {
        let args = [&["run", "-di", "--rm", "--network", "none"], &options[..], &["busybox", "sh", "-c", script]].concat();
        let (code, id, errors) = sandbox.by("dhow", &args);
        assert_eq!(code, 0, "{errors}");
        let id = id.trim();
        let mut socket = std::os::unix::net::UnixStream::connect(sandbox.socket()).unwrap();
        let request = format!(
            "POST /containers/{id}/attach?logs=1&stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        socket.write_all(b"end\n").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let (mut rest, mut output) = (&answer[head..], Vec::new());
        while let Some((header, body)) = rest.split_at_checked(8) {
            let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
            output.extend_from_slice(&body[..length]);
            rest = &body[length..];
        }
        let output = text(&output);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.last(), Some(&"end"), "round {round}");
        // The oldest may have been rotated away; from there on each comes once.
        let first: usize = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
        for (number, line) in (first..3000).zip(&lines) {
            assert_eq!(*line, format!("line {number}"), "round {round}");
        }
        assert_eq!(lines.len(), 3001 - first, "round {round}");
    }
    sandbox.finish();
}
