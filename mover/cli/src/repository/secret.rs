//! Where keys and passphrases come from. Never from the command line itself, where every user of the host sees them.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mover_job::repository::access::{self, RepositoryOptions};
use mover_model::{Error, ErrorKind, Result};
use mover_repository::Secret;
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};

/// Longest passphrase that is typed.
const TYPED_BYTES_MAX: usize = 4096;

/// What opens a repository.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Repository")]
pub struct SecretArgs {
    /// A file of at least 32 random bytes that opens the repository
    #[arg(long, value_name = "FILE", group = "secret")]
    key_file: Option<PathBuf>,

    /// A file with the passphrase; the newline at its end does not count
    #[arg(long, value_name = "FILE", group = "secret")]
    passphrase_file: Option<PathBuf>,

    /// A shell command that prints the passphrase
    #[arg(long, value_name = "COMMAND", group = "secret")]
    passphrase_command: Option<String>,
}

impl SecretArgs {
    /// The secret that was given; `None` where there was none.
    ///
    /// # Errors
    /// `Key` where it cannot be had.
    pub fn given(&self) -> Result<Option<Secret>> {
        of(self.key_file.as_deref(), self.passphrase_file.as_deref(), self.passphrase_command.as_deref())
    }
}

/// The secret that one of three flags gives.
///
/// # Errors
/// `Key` where it cannot be had.
pub fn of(
    key_file: Option<&Path>,
    passphrase_file: Option<&Path>,
    passphrase_command: Option<&str>,
) -> Result<Option<Secret>> {
    Ok(match (key_file, passphrase_file, passphrase_command) {
        (Some(file), ..) => Some(Secret::from_key_file(file)?),
        (_, Some(file), _) => Some(Secret::from_passphrase_file(file)?),
        // The command itself may hold a secret, so no message repeats it.
        (.., Some(command)) => {
            Some(Secret::from_passphrase_command(command).map_err(|error| error.at("--passphrase-command"))?)
        }
        _ => None,
    })
}

/// Asks for a passphrase where the repository needs one and there is a terminal to ask at.
///
/// # Errors
/// `Key` where nothing was typed.
pub fn ask_if_needed(options: &RepositoryOptions) -> Result<Secret> {
    if !can_ask() {
        return Ok(Secret::None);
    }
    match access::config(options) {
        Ok((_, config)) if config.encrypted => ask(&format!("Passphrase of {}: ", options.folder.display())),
        // Whatever else is wrong is told by the job.
        _ => Ok(Secret::None),
    }
}

/// Asks for a new passphrase, twice.
///
/// # Errors
/// `Usage` where there is no terminal, `Key` where the two are not equal.
pub fn ask_new(flags: &str) -> Result<Secret> {
    if !can_ask() {
        return Err(
            Error::usage("there is no terminal to ask for a new passphrase at").hint(format!("say {flags}"))
        );
    }
    match (ask("New passphrase: ")?, ask("The same again: ")?) {
        (Secret::Passphrase(ref first), Secret::Passphrase(ref second)) if first != second => {
            Err(Error::new(ErrorKind::Key, "the two passphrases are not the same").hint("try again"))
        }
        (first, _) => Ok(first),
    }
}

fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks at the terminal, which shows nothing of what is typed.
fn ask(prompt: &str) -> Result<Secret> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Key, format!("the terminal cannot be asked for a passphrase: {error}"))
            .hint("say --passphrase-file FILE or --passphrase-command COMMAND")
    };
    let stdin = io::stdin();
    let mut stderr = io::stderr();
    let silent = Silent::new(&stdin).map_err(|errno| failed(errno.into()))?;
    stderr.write_all(prompt.as_bytes()).map_err(failed)?;
    let typed = typed(&mut stdin.lock()).map_err(failed);
    drop(silent);
    let _ = stderr.write_all(b"\n");
    match typed? {
        Some(typed) => {
            let secret = Secret::Passphrase(typed);
            secret.check().map(|()| secret)
        }
        None => Err(Error::new(ErrorKind::Stopped, "interrupted while a passphrase was asked for")),
    }
}

/// Takes a line key by key; `None` for Ctrl-C. The terminal's own line editing is off, since Ctrl-C would end the
/// process and leave the terminal silent.
fn typed(keys: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const BACKSPACE: u8 = 8;
    const CTRL_U: u8 = 21;
    const DELETE: u8 = 127;
    let mut text: Vec<u8> = Vec::new();
    let mut key = [0];
    while keys.read(&mut key)? == 1 {
        match key[0] {
            CTRL_C => return Ok(None),
            CTRL_D | b'\n' | b'\r' => break,
            CTRL_U => text.clear(),
            BACKSPACE | DELETE => {
                // A character of UTF-8 goes as a whole.
                while text.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            byte if text.len() < TYPED_BYTES_MAX => text.push(byte),
            _ => {}
        }
    }
    Ok(Some(text))
}

/// Keeps a terminal from showing what is typed, until it is dropped.
struct Silent<'a, F: AsFd> {
    terminal: &'a F,
    before: Termios,
}

impl<'a, F: AsFd> Silent<'a, F> {
    fn new(terminal: &'a F) -> nix::Result<Self> {
        let before = termios::tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        silent.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Silent { terminal, before })
    }
}

impl<F: AsFd> Drop for Silent<'_, F> {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = termios::tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_three_flags_gives_the_secret_and_no_message_repeats_it() {
        let by = |command: &str| of(None, None, Some(command));
        match by("printf 'secret\\n'").unwrap() {
            Some(Secret::Passphrase(ref bytes)) => assert_eq!(bytes, b"secret"),
            other => panic!("{other:?}"),
        }
        for bad in ["exit 3", "echo hunter2 >/dev/null", "kill -9 $$"] {
            let error = by(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Key);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        for missing in ["/nonexistent", "/dev/zero"] {
            let missing = Some(Path::new(missing));
            assert_eq!(of(missing, None, None).unwrap_err().kind(), ErrorKind::Key);
            assert_eq!(of(None, missing, None).unwrap_err().kind(), ErrorKind::Key);
        }
        assert!(of(None, None, None).unwrap().is_none());
    }

    #[test]
    fn typing_can_be_corrected_and_given_up() {
        let typed = |keys: &[u8]| typed(&mut &keys[..]).unwrap();
        assert_eq!(typed(b"secret\nmore").unwrap(), b"secret");
        assert_eq!(typed("aä\u{7f}b\r".as_bytes()).unwrap(), b"ab");
        assert_eq!(typed(b"wrong\x15right\n").unwrap(), b"right");
        assert_eq!(typed(b"ab\x04").unwrap(), b"ab");
        assert_eq!(typed(b"ab\x03"), None);
    }
}
