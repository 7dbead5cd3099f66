//! Building images: the Dockerfile language, the graph of steps, what of it is known already, and what comes of it.

pub mod address;
pub mod dockerfile;
pub mod files;
pub mod mode;
pub mod pattern;
pub mod plan;
pub mod progress;
pub mod solve;
pub mod text;
