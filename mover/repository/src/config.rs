//! What a repository is: chosen once by `init`, and true for its whole life.

use mover_model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::format::{envelope, hex, newer};

/// Where the config lies.
pub const CONFIG_KEY: &str = "config";

/// Version of the format. Golden repositories of every version are opened by every later one.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a chunk where nothing is said, but for zstd: see perf-notes.md, "Chunk size". See [`default_chunk_size`].
pub const CHUNK_SIZE_DEFAULT: u32 = 128 << 10;
/// The same with zstd, which finds more in larger chunks: 3 GiB of programs and sources came to 1,130 MiB in chunks of
/// 128 KiB, 1,075 MiB in 512 KiB and 1,055 MiB in 1 MiB (lz4: 1,437, and 1,421 MiB in 1 MiB). Beyond 512 KiB little is
/// gained, and a changed block has more stored again.
pub const CHUNK_SIZE_DEFAULT_ZSTD: u32 = 512 << 10;
/// Smallest chunk: below it names take more room than they save.
pub const CHUNK_SIZE_MIN: u32 = 16 << 10;
/// Largest chunk: a request of the engine holds at least one.
pub const CHUNK_SIZE_MAX: u32 = 4 << 20;

/// How chunks are compressed; each is kept so only where it pays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4 block format.
    #[default]
    Lz4,
    /// Zstandard at a level of 1 to 19.
    Zstd(i32),
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl std::str::FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("`{text}` is no compression"))
                .hint("write lz4, zstd, zstd:1 to zstd:19, or none")
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Compression::None),
            None if text == "lz4" => Ok(Compression::Lz4),
            None if text == "zstd" => Ok(Compression::Zstd(3)),
            Some(("zstd", level)) => level
                .parse()
                .ok()
                .filter(|level| (1..=19).contains(level))
                .map(Compression::Zstd)
                .ok_or_else(bad),
            _ => Err(bad()),
        }
    }
}

/// Bytes of a chunk where only the compression was chosen.
pub fn default_chunk_size(compression: Compression) -> u32 {
    match compression {
        Compression::Zstd(_) => CHUNK_SIZE_DEFAULT_ZSTD,
        Compression::Lz4 | Compression::None => CHUNK_SIZE_DEFAULT,
    }
}

/// What `init` is told.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Bytes of a chunk: a power of two from [`CHUNK_SIZE_MIN`] to [`CHUNK_SIZE_MAX`].
    pub chunk_size: u32,
    /// How chunks are compressed.
    pub compression: Compression,
    /// The id key of another repository, to give equal content equal names in both; `None`: a new one.
    pub id_key: Option<[u8; 32]>,
}

impl Default for InitOptions {
    fn default() -> Self {
        InitOptions { chunk_size: CHUNK_SIZE_DEFAULT, compression: Compression::default(), id_key: None }
    }
}

/// The object `config`: the first one put, so that a folder without it is no repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// The repository's id, a UUID.
    pub id: String,
    /// When it was made: RFC 3339, UTC.
    pub created: String,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// How new chunks are compressed.
    pub compression: Compression,
    /// Whether content and metadata are encrypted; the keys are in `keys/`.
    pub encrypted: bool,
    /// The secrets of a repository without encryption, 64 hex digits: they keep guests from forging chunks of equal
    /// names and find damage, and hide nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_key: Option<String>,
    /// A keyed hash of a constant and of what the config says, by which a wrong key is told from damage, and an altered
    /// config from a true one; 64 hex digits.
    pub key_check: String,
}

impl InitOptions {
    /// Whether they are within bounds.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        if !is_chunk_size(self.chunk_size) {
            return Err(Error::usage(format!("a chunk of {} bytes is none", self.chunk_size))
                .hint(format!("give a power of two from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX}")));
        }
        // Levels can be given without their text.
        self.compression.to_string().parse::<Compression>().map(|_| ())
    }
}

fn is_chunk_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&bytes)
}

impl Config {
    /// A new repository's; the key check is still to be made. `id_key` where it is not encrypted.
    pub(crate) fn new(id: String, created: String, options: &InitOptions, id_key: Option<&[u8; 32]>) -> Self {
        Config {
            version: FORMAT_VERSION,
            id,
            created,
            chunk_size: options.chunk_size,
            compression: options.compression,
            encrypted: id_key.is_none(),
            id_key: id_key.map(|key| hex::encode(key)),
            key_check: String::new(),
        }
    }

    /// The config in an envelope's body, with the id's bytes and the id key of a repository without encryption.
    pub(crate) fn parse(body: &[u8], label: &str) -> Result<(Self, [u8; 16], Option<[u8; 32]>)> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // Of a later version only this field is sure to be there.
        let Versioned { version } = envelope::parse(label, body)?;
        if version != FORMAT_VERSION {
            let what = format!("the repository has format {version}, and this mover knows {FORMAT_VERSION}");
            return Err(newer(label, &what));
        }
        let config: Config = envelope::parse(label, body)?;
        let bad = |what: &str| {
            Error::new(ErrorKind::Corruption, format!("what it says cannot be: {what}"))
                .at(label)
                .hint("restore `config` from a copy of the repository")
        };
        let id = uuid::Uuid::try_parse(&config.id).map_err(|_| bad("its id is no UUID"))?;
        if !is_chunk_size(config.chunk_size) {
            return Err(bad(&format!("chunks of {} bytes", config.chunk_size)));
        }
        if config.compression.to_string().parse::<Compression>().is_err() {
            return Err(bad(&format!("compression `{}`", config.compression)));
        }
        let id_key = match (config.encrypted, &config.id_key) {
            (true, None) => None,
            (false, Some(text)) => Some(hex::decode(text).ok_or_else(|| bad("its id key is no key"))?),
            (true, Some(_)) => return Err(bad("it is encrypted and tells its id key")),
            (false, None) => return Err(bad("it is not encrypted and has no id key")),
        };
        Ok((config, id.into_bytes(), id_key))
    }
}
