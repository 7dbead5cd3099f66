//! What becomes of a build besides an image here: `--output`.

use std::fs;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dhow_engine::dhow_build::progress::BuildError;
use dhow_engine::{
    Annotation, ArchiveLayout, BuildOutput, Compression, CopyOptions, Engine, ImageForm, Provenance, Solved, Squash, copy_into,
    scanner_of,
};
use dhow_oci::Reference;
use dhow_sys::root::Root;

use super::{Build, failed, fields};
use crate::failure::Result;

/// Where all of a build's results go.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// Nothing, but that the steps are known from then on.
    pub is_cache_only: bool,
    /// An image of here.
    pub image: bool,
    /// And from here to the registries of its names.
    pub push: bool,
    /// Names besides those of `--tag`.
    pub names: Vec<String>,
    /// How the image of here is to be.
    pub form: ImageForm,
    pub files: Vec<Files>,
}

/// What a build's result is handed out as, without an image of here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files {
    content: Content,
    place: Place,
    form: ImageForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Its files.
    Files,
    /// An image with what describes it.
    Image(ArchiveLayout),
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Directory(PathBuf),
    /// As a tar.
    File(PathBuf),
    /// As a tar on standard output.
    Stream,
}

impl Build {
    /// `[TYPE[,TYPE][PLATFORM]:]KEY=VALUE` (buildx, `ParseAnnotations`).
    pub(super) fn annotations(&self) -> Result<Vec<Annotation>> {
        let mut annotations = Vec::new();
        for text in &self.annotation {
            let (name, value) =
                text.split_once('=').ok_or_else(|| failed(format!("invalid annotation \"{text}\", expected key=value")))?;
            let (places, key) = match name.split_once(':') {
                Some((places, key)) => (places, key),
                None => ("", name),
            };
            for place in places.split(',') {
                annotations.push(Annotation::at(place, key, value).map_err(failed)?);
            }
        }
        Ok(annotations)
    }

    /// What is attested, by `--provenance` and `--attest`.
    fn provenance(&self) -> Result<Option<Provenance>> {
        let mut provenance = None;
        for (kind, rest) in self.attested()? {
            if kind == "provenance" {
                provenance = Provenance::parse(&rest).map_err(failed)?;
            }
        }
        match &self.provenance {
            Some(text) => Provenance::parse(text).map_err(failed),
            None => Ok(provenance),
        }
    }

    /// Who looks through the images, by `--sbom` and `--attest`.
    pub(super) fn scanner(&self) -> Result<Option<Reference>> {
        let mut scanner = None;
        let given = self.sbom.iter().map(|text| ("sbom".to_owned(), text.clone()));
        for (_, text) in self.attested()?.into_iter().chain(given).filter(|(kind, _)| kind == "sbom") {
            scanner = scanner_of(&text).map_err(failed)?;
        }
        Ok(scanner)
    }

    /// Each `--attest`: its type, and the rest.
    fn attested(&self) -> Result<Vec<(String, String)>> {
        let one = |text: &String| {
            let all = fields(text).map_err(failed)?;
            let (kinds, rest): (Vec<&str>, Vec<&str>) =
                all.iter().map(String::as_str).partition(|field| field.starts_with("type=") || !field.contains('='));
            match kinds[..] {
                [kind] if matches!(kind.trim_start_matches("type="), "provenance" | "sbom") => {
                    Ok((kind.trim_start_matches("type=").to_owned(), rest.join(",")))
                }
                _ => Err(failed(format!("attestation {text}: its type has to be provenance or sbom"))),
            }
        };
        self.attest.iter().map(one).collect()
    }

    pub(super) fn outputs(&self) -> Result<Outputs> {
        let mut outputs = Outputs::default();
        for text in &self.output {
            output(text, &mut outputs)?;
        }
        if self.push && !outputs.image && !outputs.files.is_empty() {
            return Err(failed("push and this output can't be used together: an image is what is pushed".to_owned()));
        }
        if outputs.files.iter().filter(|files| files.place == Place::Stream).count() > 1 {
            return Err(failed("only one output can go to standard output".to_owned()));
        }
        outputs.image |= self.load || self.push || (outputs.files.is_empty() && !outputs.is_cache_only);
        outputs.push |= self.push;
        let (annotations, provenance) = (self.annotations()?, self.provenance()?);
        let squash = Squash::parse(&self.squash).map_err(failed)?;
        for form in outputs.files.iter_mut().map(|files| &mut files.form).chain([&mut outputs.form]) {
            form.annotations.extend(annotations.iter().cloned());
            form.provenance.clone_from(&provenance);
            form.squash = squash;
        }
        Ok(outputs)
    }
}

impl Outputs {
    /// As they are written down of a build.
    pub fn recorded(&self) -> Vec<BuildOutput> {
        let of = |kind: &str| BuildOutput { kind: kind.to_owned(), ..BuildOutput::default() };
        let files = self.files.iter().map(|files| match (files.content, &files.place) {
            (Content::Image(ArchiveLayout::Oci), _) => of("oci"),
            (Content::Image(ArchiveLayout::Docker), _) => of("docker"),
            (Content::Files, Place::Directory(_)) => of("local"),
            (Content::Files, _) => of("tar"),
        });
        files.chain(self.image.then(|| of("image"))).collect()
    }
}

/// `TYPE`, `PATH`, `-`, or `type=TYPE,dest=PATH` and more.
fn output(text: &str, into: &mut Outputs) -> Result<()> {
    let is_pair = text.contains('=');
    let (mut kind, mut destination, mut push, mut is_tar) = (String::new(), None, false, true);
    let mut form = ImageForm::default();
    match text {
        "-" => (kind, destination) = ("tar".to_owned(), Some("-".to_owned())),
        "image" | "docker" | "registry" | "cacheonly" => kind = text.to_owned(),
        path if !is_pair => (kind, destination) = ("local".to_owned(), Some(path.to_owned())),
        _ => {}
    }
    for field in fields(text).map_err(failed)?.iter().filter(|_| is_pair) {
        let (key, value) = field.split_once('=').ok_or_else(|| failed(format!("invalid value {field}: expected key=value")))?;
        let is_true = matches!(value, "true" | "1");
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = value.to_owned(),
            "dest" => destination = Some(value.to_owned()),
            "push" => push = is_true,
            "name" => into.names.extend(value.split(',').filter(|name| !name.is_empty()).map(str::to_owned)),
            "tar" => is_tar = is_true,
            // How images are stored and sent is settled here: layers are compressed when they are pushed, in OCI's types.
            "load" | "unpack" | "store" | "oci-mediatypes" | "compression-level" => {}
            "platform-split" if is_true => {}
            "compression" => {
                let wrong = || failed(format!("output {text}: unsupported layer compression type {value}"));
                form.compression = Compression::parse(value).ok_or_else(wrong)?;
            }
            key if key.starts_with("annotation") => {
                let (place, name) = key.split_once('.').unwrap_or((key, ""));
                let place = place.trim_start_matches("annotation").trim_start_matches('-');
                form.annotations.push(Annotation::at(place, name, value).map_err(failed)?);
            }
            "push-by-digest" => form.by_digest = is_true,
            // What is pushed by its digest is known by it here, too.
            "name-canonical" => {}
            "rewrite-timestamp" => form.rewrites_times = is_true,
            "force-compression" if !is_true => {}
            other => return Err(failed(format!("output {text}: {other}={value} is not supported yet"))),
        }
    }
    let content = match kind.as_str() {
        "registry" | "image" | "docker" if destination.is_none() => {
            into.image = true;
            into.push |= push || kind == "registry";
            into.form = form.clone();
            return Ok(());
        }
        "cacheonly" if destination.is_none() => {
            into.is_cache_only = true;
            return Ok(());
        }
        "local" | "tar" => Content::Files,
        "docker" => Content::Image(ArchiveLayout::Docker),
        "oci" => Content::Image(ArchiveLayout::Oci),
        "" => return Err(failed(format!("type is required for output {text}"))),
        other => return Err(failed(format!("invalid output {text}: {other} is no type of output, or has no dest"))),
    };
    let is_directory = kind == "local" || (content != Content::Files && !is_tar);
    let place = match destination.filter(|path| path != "-") {
        Some(path) if is_directory => Place::Directory(path.into()),
        Some(path) => Place::File(path.into()),
        None if is_directory => return Err(failed(format!("output directory is required for {kind} exporter"))),
        None if io::stdout().is_terminal() => {
            return Err(failed(format!("dest file is required for {kind} exporter. refusing to write to console")));
        }
        None => Place::Stream,
    };
    into.files.push(Files { content, place, form });
    Ok(())
}

/// What goes with the files.
pub(super) struct Given<'a> {
    pub engine: &'a Engine,
    pub solved: &'a Solved,
    pub names: &'a [Reference],
}

impl Files {
    pub fn title(&self) -> &'static str {
        match (self.content, &self.place) {
            (Content::Image(ArchiveLayout::Oci), _) => "exporting to oci image format",
            (Content::Image(ArchiveLayout::Docker), _) => "exporting to docker image format",
            (Content::Files, Place::Directory(_)) => "exporting to client directory",
            (Content::Files, _) => "exporting to client tarball",
        }
    }

    /// Hands them out. In a directory they are of whoever builds.
    pub fn write(&self, given: &Given<'_>) -> Result<(), BuildError> {
        let wrong = |path: &Path, error: io::Error| BuildError::invalid(format!("create {}: {error}", path.display()));
        match &self.place {
            Place::Stream => self.pack(given, io::stdout().lock()),
            Place::File(path) => self.pack(given, fs::File::create(path).map_err(|error| wrong(path, error))?),
            Place::Directory(path) => {
                let create = |error| wrong(path, error);
                // As buildx makes it.
                fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(create)?;
                let root = Root::open_path(path).map_err(create)?;
                let (reader, writer) = io::pipe().map_err(create)?;
                let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                std::thread::scope(|scope| {
                    let packing = scope.spawn(|| self.pack(given, writer));
                    let copied = copy_into(reader, &root, CopyOptions { keep_kinds: false, owner: Some(owner), ids: None });
                    let packed =
                        packing.join().unwrap_or_else(|_| Err(BuildError::internal("packing the files ended by itself")));
                    // Whoever reads no more makes the other fail: what he says comes first.
                    copied.map_err(|error| BuildError::invalid(format!("write {}: {error}", path.display())))?;
                    packed
                })
            }
        }
    }

    fn pack(&self, given: &Given<'_>, out: impl Write) -> Result<(), BuildError> {
        let mut out = BufWriter::with_capacity(1 << 16, out);
        let packed = match self.content {
            Content::Files => given.engine.pack_build(given.solved, &mut out),
            Content::Image(layout) => {
                given.engine.archive_build(given.solved, given.names, layout, &self.form, &mut out).map(drop)
            }
        };
        packed.map_err(|error| BuildError::invalid(error.message))?;
        out.flush().map_err(|error| BuildError::invalid(format!("write the build's files: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<Outputs> {
        let mut outputs = Outputs::default();
        texts.iter().try_for_each(|text| output(text, &mut outputs))?;
        Ok(outputs)
    }

    #[test]
    fn forms() {
        let one = |text: &str| read(&[text]).unwrap().files.pop().unwrap();
        let files = |content, place| Files { content, place, form: ImageForm::default() };
        assert_eq!(one("out"), files(Content::Files, Place::Directory("out".into())));
        assert_eq!(one("type=tar,dest=x.tar"), files(Content::Files, Place::File("x.tar".into())));
        assert_eq!(one("type=oci,dest=x"), files(Content::Image(ArchiveLayout::Oci), Place::File("x".into())));
        assert_eq!(one("type=oci,dest=x,tar=false"), files(Content::Image(ArchiveLayout::Oci), Place::Directory("x".into())));
        assert_eq!(one("type=docker,dest=x"), files(Content::Image(ArchiveLayout::Docker), Place::File("x".into())));
        let several = read(&["type=image,name=a,push=true", "type=local,dest=x"]).unwrap();
        assert!(several.image && several.push && several.names == ["a"] && several.files.len() == 1);
        let compression = |text: &str| one(&format!("type=oci,dest=x{text}")).form.compression;
        assert_eq!(
            [compression(""), compression(",compression=zstd"), compression(",compression=uncompressed")],
            [Compression::Gzip, Compression::Zstd, Compression::Uncompressed]
        );
        for bad in ["type=local", "dest=x", "type=what,dest=x", "type=oci,dest=x,compression=lz4", "type=image,dest=x"] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }
}
