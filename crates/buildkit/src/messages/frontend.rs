//! `moby.buildkit.v1.frontend.LLBBridge`: what a frontend at the client asks for, and what it gets.

use std::collections::HashMap;

use prost::Message;

use super::control::WorkerRecord;
use super::{Empty, RpcStatus};

/// `moby.buildkit.v1.frontend.SolveRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct BridgeSolveRequest {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub definition: Option<Vec<u8>>,
    #[prost(string, tag = "2")]
    pub frontend: String,
    #[prost(map = "string, string", tag = "3")]
    pub options: HashMap<String, String>,
    #[prost(map = "string, message", tag = "13")]
    pub inputs: HashMap<String, Definition>,
    #[prost(bool, tag = "14")]
    pub evaluate: bool,
}

/// `pb.Definition`: operations, each after those that it needs. The last one only says which of them is meant.
#[derive(Clone, PartialEq, Message)]
pub struct Definition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub operations: Vec<Vec<u8>>,
    /// By the operations' digests. Clients take a definition without any for none.
    #[prost(map = "string, message", tag = "2")]
    pub metadata: HashMap<String, Empty>,
}

/// `pb.Op`, of which only sources are known here.
#[derive(Clone, PartialEq, Message)]
pub struct Operation {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<OperationInput>,
    #[prost(message, optional, tag = "3")]
    pub source: Option<SourceOperation>,
}

/// `pb.Input`: an output of another operation, by the digest of that.
#[derive(Clone, PartialEq, Message)]
pub struct OperationInput {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub index: i64,
}

/// `pb.SourceOp`.
#[derive(Clone, PartialEq, Message)]
pub struct SourceOperation {
    #[prost(string, tag = "1")]
    pub identifier: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct BridgeSolveResponse {
    #[prost(message, optional, tag = "3")]
    pub result: Option<BridgeResult>,
}

/// `moby.buildkit.v1.frontend.Result`: one reference, or one for each platform.
#[derive(Clone, PartialEq, Message)]
pub struct BridgeResult {
    #[prost(message, optional, tag = "3")]
    pub reference: Option<Ref>,
    #[prost(message, optional, tag = "4")]
    pub references: Option<RefMap>,
    #[prost(map = "string, bytes", tag = "10")]
    pub metadata: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ref {
    #[prost(string, tag = "1")]
    pub id: String,
    /// What it is made of, for clients that hand it on as an input of other builds.
    #[prost(message, optional, tag = "2")]
    pub definition: Option<Definition>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RefMap {
    #[prost(map = "string, message", tag = "1")]
    pub refs: HashMap<String, Ref>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReturnRequest {
    #[prost(message, optional, tag = "1")]
    pub result: Option<BridgeResult>,
    #[prost(message, optional, tag = "2")]
    pub error: Option<RpcStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub enabled: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct PongResponse {
    #[prost(message, repeated, tag = "1")]
    pub frontend: Vec<Capability>,
    #[prost(message, repeated, tag = "2")]
    pub graph: Vec<Capability>,
    #[prost(message, repeated, tag = "3")]
    pub workers: Vec<WorkerRecord>,
}
