//! The registry's web page, in a browser.

use dhow_testkit::http::request;
use dhow_testkit::{Browser, Served, sandboxed, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_dhow");

#[test]
fn people_look_around_copy_and_delete() {
    let sandbox = sandboxed!();
    let registry = Served::start(BINARY, &sandbox.path("registry"), &[]);
    let Some(browser) = Browser::start() else { return };
    let at = |path: &str| format!("http://{}{path}", registry.address);
    browser.open(&at("/"));
    assert!(browser.text("main").contains("There is nothing here yet"), "{}", browser.text("main"));
    assert_eq!(browser.text("main code"), format!("docker push {}/NAME:TAG", registry.address));

    // What images say of themselves is text, whatever it looks like.
    sandbox.ok(&["run", "--name", "made", "busybox", "sh", "-c", "echo '<b id=step>bold</b>' >/file"]);
    let change = "LABEL note=<script>document.title='owned'</script>";
    sandbox.ok(&["commit", "-c", change, "-c", "ENV COLOUR=blue", "-c", "CMD [\"cat\", \"/file\"]", "made", "made"]);
    sandbox.ok(&["rm", "made"]);
    for name in ["team/app:1.0", "team/app:latest", "library/busybox:latest"] {
        let name = registry.name(name);
        sandbox.ok(&["tag", if name.contains("busybox") { "busybox" } else { "made" }, &name]);
        sandbox.ok(&["push", "-q", &name]);
        sandbox.ok(&["rmi", &name]);
    }
    sandbox.ok(&["pull", "-q", &registry.name("team/app:latest")]);

    browser.open(&at("/"));
    let listed = browser.text("table");
    assert!(listed.contains("library/busybox") && listed.contains("team/app 2 "), "{listed}");
    assert!(browser.text("main").contains("What several repositories have is there once."));
    browser.picture("registry-repositories.png");
    browser.write("input[name=q]", "team");
    browser.click("form button");
    wait_until("it searches", || browser.url().contains("q=team"));
    assert!(!browser.text("table").contains("busybox"));
    browser.click("tbody a");
    wait_until("the repository is shown", || browser.text("h1") == "team/app");
    let tags = browser.text("table");
    assert!(tags.contains("latest") && tags.contains("1.0") && tags.contains("linux/"), "{tags}");
    browser.picture("registry-repository.png");
    assert_eq!(browser.text(".pull button"), "Copy");
    browser.click(".pull button");
    wait_until("it is copied", || browser.text(".pull button") == "Copied");

    browser.open(&at("/r/team/app?ref=latest"));
    let page = browser.text("main");
    for expected in
        ["docker pull ", "cat /file", "COLOUR=blue", "note=<script>", "<b id=step>", "History of the tag", "1, last 20"]
    {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert_eq!(browser.run("return document.title"), "team/app:latest");
    assert_eq!(browser.run("return document.querySelectorAll('#step, main script').length"), 0);
    assert_eq!(browser.run("return document.querySelectorAll('.step').length"), 2, "a line for each layer");
    browser.picture("registry-image.png");

    // Not without a yes.
    browser.click("button.danger");
    assert_eq!(browser.answer(false), "Delete the tag team/app:latest?");
    assert_eq!(registry.get("/v2/team/app/manifests/latest").status, 200);
    browser.click("button.danger");
    browser.answer(true);
    wait_until("the tag is gone", || registry.get("/v2/team/app/manifests/latest").status == 404);
    wait_until("the repository is shown", || browser.text("h1") == "team/app");
    assert!(!browser.text("table").contains("latest") && browser.text("table").contains("1.0"));
    browser.open(&at("/r/none"));
    assert_eq!(browser.text("h1"), "Not Found");

    // Another page cannot have the browser delete something.
    let form = b"delete=1.0";
    for headers in [
        &[][..],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Origin", "http://evil.example")],
        &[("Sec-Fetch-Site", "same-site"), ("Origin", &*at(""))],
    ] {
        assert_eq!(registry.ask("POST", "/r/team/app", headers, form).status, 403, "{headers:?}");
        // Nor send something to the registry itself, which takes it from whoever is no page.
        let status = registry.ask("POST", "/v2/team/other/blobs/uploads/", headers, b"").status;
        assert_eq!(status, if headers.is_empty() { 202 } else { 403 }, "{headers:?}");
    }
    let front = registry.get("/");
    assert!(front.header("content-security-policy").starts_with("default-src 'none'"), "{:?}", front.headers);
    assert_eq!(registry.ask("POST", "/r/team/app", &[("Origin", &*at(""))], form).status, 303);
    assert_eq!(registry.get("/v2/team/app/manifests/1.0").status, 404);
    sandbox.finish();
}

#[test]
fn people_see_what_they_may() {
    let directory = tempfile::Builder::new().prefix("dhow-test-").tempdir().unwrap();
    let Some(browser) = Browser::start() else { return };
    let users = directory.path().join("users");
    for user in ["ada", "bob"] {
        let mut command = std::process::Command::new(BINARY);
        command.args(["registry", "htpasswd"]).arg(&users).arg(user).stdin(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"secret").unwrap();
        assert!(child.wait().unwrap().success());
    }
    let file = directory.path().join("registry.json");
    let rules = serde_json::json!({ "htpasswd": users, "access": [
        { "users": ["anonymous"], "repositories": ["public/*"], "rights": ["pull"] },
        { "users": ["ada"], "repositories": ["**"], "rights": ["push", "delete"] },
        { "users": ["bob"], "repositories": ["team/*"], "rights": ["pull"] },
    ] });
    std::fs::write(&file, rules.to_string()).unwrap();
    let registry = Served::start(BINARY, &directory.path().join("registry"), &["--config", file.to_str().unwrap()]);
    let ada = ("Authorization", "Basic YWRhOnNlY3JldA==");
    for name in ["public/a", "team/b", "secret/c"] {
        let digest = dhow_oci::Digest::of(b"{}");
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        assert_eq!(request(registry.address, "POST", &path, &[ada], b"{}").unwrap().status, 201);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let config = serde_json::json!({ "mediaType": "application/x", "digest": digest, "size": 2 });
        let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [] }).to_string();
        let path = format!("/v2/{name}/manifests/1");
        let put = request(registry.address, "PUT", &path, &[ada, ("Content-Type", kind)], manifest.as_bytes()).unwrap();
        assert_eq!(put.status, 201);
    }
    let at = |path: &str| format!("http://{}{path}", registry.address);
    browser.open(&at("/"));
    let seen = browser.text("table");
    assert!(seen.contains("public/a") && !seen.contains("team/b") && !seen.contains("secret/c"), "{seen}");
    assert!(browser.text("header").contains("sign in"));
    for path in ["/r/team/b", "/r/none"] {
        assert_eq!(registry.get(path).status, 401, "that there is something is not told");
    }
    browser.click("header .side a");
    for (password, expected) in [("wrong", "incorrect username or password"), ("secret", "Repositories")] {
        browser.write("input[name=user]", "bob");
        browser.write("input[name=password]", password);
        browser.click("main button");
        wait_until("he is told", || browser.text("main").contains(expected));
    }
    assert!(browser.text("header").contains("signed in as bob"));
    assert_eq!(browser.run("return document.cookie"), "", "scripts do not see it");
    let seen = browser.text("table");
    assert!(seen.contains("team/b") && !seen.contains("secret/c"), "{seen}");
    browser.open(&at("/r/team/b"));
    assert_eq!(browser.run("return document.querySelectorAll('button.danger').length"), 0, "he may not delete");
    browser.open(&at("/r/secret/c"));
    assert_eq!(browser.text("h1"), "Not Found");
    browser.open(&at("/"));
    browser.click("header button");
    wait_until("he is signed out", || browser.text("header").contains("sign in"));
    assert!(!browser.text("main").contains("team/b"));
    let bob = ("Authorization", "Basic Ym9iOnNlY3JldA==");
    let own = ("Sec-Fetch-Site", "same-origin");
    assert_eq!(registry.ask("POST", "/r/team/b", &[bob, own], b"delete=1").status, 403);
    assert_eq!(registry.ask("POST", "/r/team/b", &[ada, own], b"delete=1").status, 303);
}
