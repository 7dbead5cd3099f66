//! Figures for Prometheus, in its text format 0.0.4, by the names that dockerd gives them.

use std::convert::Infallible;
use std::sync::Arc;

use dhow_engine::{Engine, Figures};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::answer::{self, Answer};

/// Answers `GET /metrics` on a socket, and nothing else: what is told there is for everybody who reaches it.
pub async fn serve_metrics(engine: Arc<Engine>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let engine = engine.clone();
                async move { Ok::<_, Infallible>(answer_to(engine, &request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer_to(engine: Arc<Engine>, request: &Request<hyper::body::Incoming>) -> Answer {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        return answer::message(StatusCode::NOT_FOUND, "page not found");
    }
    match crate::route::blocking(move || engine.figures()).await {
        Ok(figures) => {
            let mut answer = Response::new(answer::bytes_body(text(&figures)));
            answer.headers_mut().insert("Content-Type", HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
            answer
        }
        Err(error) => answer::message(StatusCode::INTERNAL_SERVER_ERROR, &error.message),
    }
}

fn text(figures: &Figures) -> String {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, values: &[(String, u64)]| {
        out += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        values.iter().for_each(|(labels, value)| out += &format!("{name}{labels} {value}\n"));
    };
    let states = [("paused", figures.paused), ("running", figures.running), ("stopped", figures.stopped)];
    gauge(
        "engine_daemon_container_states_containers",
        "The count of containers in various states",
        &states.map(|(state, count)| (format!("{{state=\"{state}\"}}"), count)),
    );
    gauge(
        "engine_daemon_engine_cpus_cpus",
        "The number of cpus that the host system of the engine has",
        &[(String::new(), figures.cpus)],
    );
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> = figures.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
    gauge(
        "engine_daemon_engine_info",
        "The information related to the engine and the OS it is running on",
        &[(format!("{{{}}}", labels.join(",")), 1)],
    );
    gauge(
        "engine_daemon_engine_memory_bytes",
        "The number of bytes of memory that the host system of the engine has",
        &[(String::new(), figures.memory)],
    );
    gauge("engine_daemon_image_count_images", "The count of images", &[(String::new(), figures.images)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_the_text_format() {
        let figures = Figures { running: 2, labels: vec![("os", "a \"b\"".to_owned())], ..Figures::default() };
        let text = text(&figures);
        assert!(text.contains("# TYPE engine_daemon_container_states_containers gauge\n"), "{text}");
        assert!(text.contains("engine_daemon_container_states_containers{state=\"running\"} 2\n"), "{text}");
        assert!(text.contains("engine_daemon_engine_info{os=\"a \\\"b\\\"\"} 1\n"), "{text}");
    }
}
