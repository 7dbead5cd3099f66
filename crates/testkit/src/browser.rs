//! A browser without a screen: Chromium, steered by its driver (W3C WebDriver).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::http::request;

/// How WebDriver names an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One browser, closed when it is dropped.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is no Chromium.
    ///
    /// # Panics
    /// There is one, and it does not start.
    pub fn start() -> Option<Browser> {
        // What the browser leaves in its temporary directory goes with this one.
        let profile = tempfile::Builder::new().prefix("dhow-test-").tempdir().expect("a directory can be made");
        let mut command = Command::new("chromedriver");
        let driver = command.arg("--port=0").env("TMPDIR", profile.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut driver) = driver else {
            crate::not_run("it needs chromium and its driver: apt-get install chromium chromium-driver");
            return None;
        };
        let mut lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok());
        let address = SocketAddr::from(([127, 0, 0, 1], port.expect("the driver says its port")));
        std::thread::spawn(move || lines.for_each(drop));
        let mut args = vec![format!("--user-data-dir={}", profile.path().display())];
        // As root there is no sandbox, and nothing beyond this host is to be asked.
        let fixed = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
                     --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,1000";
        args.extend(fixed.split_whitespace().map(str::to_owned));
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
        let mut browser = Browser { driver, address, session: String::new(), profile };
        let session = browser.ask("POST", "/session", &wanted);
        browser.session = session["sessionId"].as_str().expect("a session has an ID").to_owned();
        Some(browser)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let reply = request(self.address, method, path, &[("Content-Type", "application/json")], body.as_bytes());
        let reply = reply.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert_eq!(reply.status, 200, "{method} {path} {body}: {}", reply.text());
        reply.json()["value"].clone()
    }

    fn of_session(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Goes to an address, and waits until it is shown.
    pub fn open(&self, url: &str) {
        self.of_session("POST", "/url", &json!({ "url": url }));
    }

    pub fn url(&self) -> String {
        self.of_session("GET", "/url", &Value::Null).as_str().unwrap_or_default().to_owned()
    }

    fn find(&self, css: &str) -> String {
        let found = self.of_session("POST", "/element", &json!({ "using": "css selector", "value": css }));
        found[ELEMENT].as_str().expect("an element has an ID").to_owned()
    }

    /// The text of the first element that fits, as it is seen; nothing where there is none yet.
    pub fn text(&self, css: &str) -> String {
        let script = format!(
            "const found = document.querySelector({}); return found ? found.innerText.replace(/[\\t ]+/g, ' ') : ''",
            json!(css)
        );
        let path = format!("/session/{}/execute/sync", self.session);
        let body = json!({ "script": script, "args": [] }).to_string();
        let reply = request(self.address, "POST", &path, &[("Content-Type", "application/json")], body.as_bytes());
        // A script that is cut off by the next page has seen nothing.
        let reply = reply.ok().filter(|reply| reply.status == 200);
        reply.and_then(|reply| reply.json()["value"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    pub fn click(&self, css: &str) {
        self.of_session("POST", &format!("/element/{}/click", self.find(css)), &json!({}));
    }

    /// Types into a field.
    pub fn write(&self, css: &str, text: &str) {
        self.of_session("POST", &format!("/element/{}/value", self.find(css)), &json!({ "text": text }));
    }

    /// The question that the page asks; it is answered.
    pub fn answer(&self, yes: bool) -> String {
        let question = self.of_session("GET", "/alert/text", &Value::Null).as_str().unwrap_or_default().to_owned();
        self.of_session("POST", if yes { "/alert/accept" } else { "/alert/dismiss" }, &json!({}));
        question
    }

    /// What a script on the page says.
    pub fn run(&self, script: &str) -> Value {
        self.of_session("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Writes a picture of the page, if pictures are wanted: `DHOW_SCREENSHOTS` names their directory.
    pub fn picture(&self, name: &str) {
        let Some(directory) = std::env::var_os("DHOW_SCREENSHOTS") else { return };
        let encoded = self.of_session("GET", "/screenshot", &Value::Null);
        let path = Path::new(&directory).join(name);
        let file = std::fs::File::create(path).expect("it can be made");
        let child = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(file).spawn();
        let mut child = child.expect("base64 is there");
        std::io::Write::write_all(&mut child.stdin.take().expect("it is piped"), encoded.as_str().unwrap_or_default().as_bytes())
            .expect("it is taken");
        child.wait().expect("it ends");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let path = format!("/session/{}", self.session);
        let _ = request(self.address, "DELETE", &path, &[], b"");
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        // A browser that outlived its driver is known by its profile.
        let profile = self.profile.path().as_os_str().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if command.windows(profile.len()).any(|window| window == profile) {
                let _ = Command::new("kill").arg("-9").arg(entry.file_name()).stderr(Stdio::null()).status();
            }
        }
    }
}
