//! Building images: the Dockerfile language, the graph of steps, what of it is known already, and what comes of it.

pub mod dockerfile;
pub mod mode;
pub mod pattern;
pub mod plan;
pub mod text;
