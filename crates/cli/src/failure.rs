//! What a command ends with when it does not succeed: a text on standard error, and an exit status.

use std::fmt;

use dhow_api::client::ClientError;

/// Says a line on standard error. Where that is closed, or on a disk that is full, the command goes on: `eprintln` would end it.
macro_rules! tell {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($words)*)));
    }};
}

/// The same without an end of the line.
macro_rules! tell_on {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!($($words)*));
    }};
}

#[derive(Debug)]
pub struct Failure {
    /// Nothing is printed when empty.
    pub message: String,
    pub code: i32,
}

pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 1 }
    }

    /// As docker ends a command that does not come to run anything: the program's name before, where help is to be had
    /// behind, exit status 125. What says so already stays.
    pub fn of_command(self, command: &str) -> Failure {
        let message = match self.message.ends_with(" for more information") {
            true => self.message,
            false => format!("dhow: {}\n\nRun 'dhow {command} --help' for more information", self.message),
        };
        Failure { message, code: 125 }
    }

    /// An exit status alone, of the container's program.
    pub fn status(code: i32) -> Failure {
        Failure { message: String::new(), code }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::new(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::new(format!("decode an answer of the engine: {error}"))
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Failure {
        Failure::new(format!("connection to the engine: {error}"))
    }
}

/// Goes on with each item; what fails is printed, and the whole fails in the end (as docker does with several names).
pub async fn each<'a, F: Future<Output = Result>>(names: &'a [String], mut work: impl FnMut(&'a str) -> F) -> Result {
    let mut failed = false;
    for name in names {
        if let Err(failure) = work(name).await {
            tell!("{failure}");
            failed = true;
        }
    }
    if failed { Err(Failure::status(1)) } else { Ok(()) }
}
