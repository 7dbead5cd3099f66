//! What a user does, and how it is taken back.

/// Something that a user does. Words that begin with `@` stand for a path in the test's directory.
pub struct Operation {
    pub name: &'static str,
    /// What is there before.
    pub before: &'static [&'static str],
    pub what: &'static str,
    /// What tells that it is done, and what that says then.
    pub done: (&'static str, &'static str),
    /// What a user does before he tries again, if it is not done. It may fail.
    pub mend: &'static [&'static str],
    /// What takes it back.
    pub after: &'static [&'static str],
}

pub const RUN: &str = "run -d --name box busybox sleep 1000";
const RUN_WITH_ALL: &str = "run -d --name box -v data:/d --network net -p 127.0.0.1::80 --restart no busybox sleep 1000";
const CREATE_WITH_ALL: &str = "create --name box -v data:/d --network net -p 127.0.0.1::80 busybox sleep 1000";
const RUNNING: (&str, &str) = ("inspect -f {{.State.Status}} box", "running");
const EXITED: (&str, &str) = ("inspect -f {{.State.Status}} box", "exited");
const REMOVE: &str = "rm -f -v box";

/// What is put right by whoever uses networks, volumes or the builder next.
pub const MENDED: [&str; 4] =
    [": its bridge is missing ", ": its network was removed ", ": its removal was cut short ", ": there is no such container "];

/// What a killed command has left of the disk, and nobody has needed since, goes with this at the latest.
pub const PRUNE: &str = "system prune -f --volumes";

const fn operation(
    name: &'static str,
    before: &'static [&'static str],
    what: &'static str,
    done: (&'static str, &'static str),
    mend: &'static [&'static str],
    after: &'static [&'static str],
) -> Operation {
    Operation { name, before, what, done, mend, after }
}

pub const OPERATIONS: &[Operation] = &[
    operation("volume create", &[], "volume create data", ("volume ls -q", "data"), &[], &["volume rm data"]),
    operation("volume rm", &["volume create data"], "volume rm data", ("volume ls -q", ""), &[], &[]),
    operation(
        "network create",
        &[],
        "network create net",
        ("network ls --filter name=net --format {{.Name}}", "net"),
        &[],
        &["network rm net"],
    ),
    operation(
        "network rm",
        &["network create net"],
        "network rm net",
        ("network ls --filter name=net --format {{.Name}}", ""),
        &[],
        &[],
    ),
    operation(
        "create",
        &["network create net"],
        CREATE_WITH_ALL,
        ("inspect -f {{.State.Status}} box", "created"),
        &["rm box"],
        &["rm box", "volume rm data", "network rm net"],
    ),
    operation(
        "run",
        &["network create net"],
        RUN_WITH_ALL,
        RUNNING,
        &["rm -f box"],
        &["rm -f box", "volume rm data", "network rm net"],
    ),
    operation("run --rm", &[], "run --rm --name box -v /d busybox true", ("ps -aq", ""), &["rm -f box"], &[]),
    operation(
        "start",
        &["network create net", CREATE_WITH_ALL],
        "start box",
        RUNNING,
        &[],
        &["rm -f box", "volume rm data", "network rm net"],
    ),
    operation("restart", &[RUN], "restart -t 0 box", RUNNING, &[], &[REMOVE]),
    operation("stop", &[RUN], "stop -t 0 box", EXITED, &[], &[REMOVE]),
    operation("kill", &[RUN], "kill box", EXITED, &[], &[REMOVE]),
    operation("pause", &[RUN], "pause box", ("inspect -f {{.State.Status}} box", "paused"), &["start box"], &[REMOVE]),
    operation("unpause", &[RUN, "pause box"], "unpause box", RUNNING, &["start box"], &[REMOVE]),
    operation("exec", &[RUN], "exec box touch /there", ("exec box ls /there", "/there"), &["start box"], &[REMOVE]),
    operation("cp", &[RUN], "cp @busybox.tar box:/", ("exec box ls /busybox.tar", "/busybox.tar"), &["start box"], &[REMOVE]),
    operation("rename", &[RUN], "rename box other", ("inspect -f {{.Name}} other", "/other"), &[], &["rm -f other"]),
    operation(
        "update",
        &[RUN],
        "update --memory 64m --memory-swap 64m box",
        ("inspect -f {{.HostConfig.Memory}} box", "67108864"),
        &["start box"],
        &[REMOVE],
    ),
    operation(
        "network connect",
        &["network create net", RUN],
        "network connect net box",
        ("ps --filter network=net --format {{.Names}}", "box"),
        &["start box", "network disconnect -f net box"],
        &[REMOVE, "network rm net"],
    ),
    operation(
        "network disconnect",
        &["network create net", RUN, "network connect net box"],
        "network disconnect net box",
        ("ps --filter network=net --format {{.Names}}", ""),
        &["start box"],
        &[REMOVE, "network rm net"],
    ),
    operation("rm", &["create --name box -v /d busybox true"], "rm -v box", ("ps -aq", ""), &[], &[]),
    operation("rm -f", &[RUN], "rm -f box", ("ps -aq", ""), &[], &[]),
    operation(
        "commit",
        &[RUN, "exec box touch /there"],
        "commit box made",
        ("images --format {{.Tag}} made", "latest"),
        &["start box", "exec box touch /there"],
        &["rmi made", REMOVE],
    ),
    operation("tag", &[], "tag busybox other", ("images --format {{.Tag}} other", "latest"), &[], &["rmi other"]),
    operation("rmi", &["import @layer.tar other"], "rmi other", ("images -q other", ""), &[], &[]),
    operation(
        "import",
        &[],
        "import @layer.tar other",
        ("images --format {{.Tag}} other", "latest"),
        &["system prune -f"],
        &["rmi other"],
    ),
    operation("load", &[], "load -i @saved.tar", ("images --format {{.Tag}} saved", "latest"), &[], &["rmi saved"]),
    operation(
        "pull",
        &[],
        "pull @registry/one",
        ("images --format {{.Tag}} @registry/one", "latest"),
        &[],
        &["rmi @registry/one"],
    ),
    operation(
        "build",
        &[],
        "build -q -t made @context",
        ("images --format {{.Tag}} made", "latest"),
        &[],
        &["rmi made", "builder prune -af"],
    ),
    operation("system prune", &["create --name box -v /d busybox true", "network create net"], PRUNE, ("ps -aq", ""), &[], &[]),
];
