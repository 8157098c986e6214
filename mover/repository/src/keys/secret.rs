//! What the user gives to open a repository.

use std::path::Path;
use std::process::{Command, Stdio};

use mover_model::{Error, ErrorKind, Operation, Result};

use super::wipe;

/// Fewest bytes of a key file: it stands in for a key, and no work makes guessing it slower.
pub const KEY_FILE_MIN: usize = 32;
/// Most bytes of a secret: `--key-file` may name anything.
const SECRET_MAX: u64 = 1 << 20;

/// How the user proves that they may open a repository.
#[derive(Clone, Default)]
pub enum Secret {
    /// Nothing was given.
    #[default]
    None,
    /// The content of `--key-file`: at least 32 bytes.
    KeyFile(Vec<u8>),
    /// What `--passphrase-file`, `--passphrase-command` or the prompt gave.
    Passphrase(Vec<u8>),
}

impl std::fmt::Debug for Secret {
    /// Never shows what it holds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Secret::None => "Secret::None",
            Secret::KeyFile(_) => "Secret::KeyFile(…)",
            Secret::Passphrase(_) => "Secret::Passphrase(…)",
        })
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Secret::KeyFile(bytes) | Secret::Passphrase(bytes) = self {
            wipe(bytes);
        }
    }
}

impl Secret {
    /// Whether none was given.
    pub fn is_none(&self) -> bool {
        matches!(self, Secret::None)
    }

    /// The content of a key file, all of it.
    ///
    /// # Errors
    /// `Key` when it cannot be read, or is shorter than 32 bytes or longer than 1 MiB.
    pub fn from_key_file(path: &Path) -> Result<Self> {
        let secret = Secret::KeyFile(read(path)?);
        secret.check().map_err(|error| error.at(path.display().to_string()))?;
        Ok(secret)
    }

    /// A passphrase from a file; one newline at its end is cut, as editors put one there.
    ///
    /// # Errors
    /// `Key` when it cannot be read or is empty.
    pub fn from_passphrase_file(path: &Path) -> Result<Self> {
        let mut bytes = read(path)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        let secret = Secret::Passphrase(bytes);
        secret.check().map_err(|error| error.at(path.display().to_string()))?;
        Ok(secret)
    }

    /// The first line that a shell command prints. It may ask on the terminal: it has our standard input and error.
    /// Errors do not repeat the command, which may hold what opens a password store.
    ///
    /// # Errors
    /// `Key` when it cannot be run, fails or prints no such line.
    pub fn from_passphrase_command(command: &str) -> Result<Self> {
        let failed = |what: String| {
            Error::new(ErrorKind::Key, format!("the passphrase command {what}"))
                .hint("run it by hand: it has to print the passphrase as its first line")
        };
        let mut output = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::inherit())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| failed(format!("cannot be run: {error}")))?;
        let line = output.stdout.split(|&byte| byte == b'\n').next().unwrap_or_default().to_vec();
        wipe(&mut output.stdout);
        if !output.status.success() {
            return Err(failed(format!("failed: {}", output.status)));
        }
        let secret = Secret::Passphrase(line);
        secret.check().map_err(|_| failed("printed no passphrase".to_owned()))?;
        Ok(secret)
    }

    /// Whether it is one at all.
    ///
    /// # Errors
    /// `Key` for a key file that is too short and for an empty passphrase.
    pub fn check(&self) -> Result<()> {
        match self {
            Secret::KeyFile(bytes) if bytes.len() < KEY_FILE_MIN => {
                let message = format!(
                    "the key file has {} bytes, and fewer than {KEY_FILE_MIN} can be guessed",
                    bytes.len()
                );
                Err(Error::new(ErrorKind::Key, message)
                    .hint("make one with `head -c 32 /dev/urandom > FILE`, and keep a copy of it elsewhere"))
            }
            Secret::Passphrase(bytes) if bytes.is_empty() => {
                Err(Error::new(ErrorKind::Key, "the passphrase is empty").hint("give one of several words"))
            }
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let label = path.display().to_string();
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Key, error.to_string())
            .at(&label)
            .during(Operation::Read)
            .hint("the secret is read from this file: check its path and who may read it")
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(SECRET_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SECRET_MAX {
        let message = format!("a secret has at most {SECRET_MAX} bytes, and this file has more");
        return Err(Error::new(ErrorKind::Key, message)
            .at(label)
            .hint("make one with `head -c 32 /dev/urandom`"));
    }
    Ok(bytes)
}
