//! Files that are written as a whole or not at all: beside the place first, then put there.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file still to be written.
pub struct Whole {
    path: PathBuf,
    /// A device or a pipe has nothing that could be put in its place.
    is_plain: bool,
}

impl Whole {
    /// Looks, before the work starts, whether the file can be written in the end. Nothing is left there meanwhile.
    ///
    /// # Errors
    /// When it cannot, as for a folder.
    pub fn at(path: &Path) -> io::Result<Self> {
        if !path.exists() {
            let whole = Self { path: path.into(), is_plain: true };
            return whole.beside().map(|_| whole);
        }
        OpenOptions::new().write(true).open(path)?;
        let path = path.canonicalize()?;
        let mut whole = Self { is_plain: path.is_file(), path };
        // In a folder that takes no new files it is written in place.
        whole.is_plain &= whole.beside().is_ok();
        Ok(whole)
    }

    /// Writes it. Where that fails, what was there before still is.
    ///
    /// # Errors
    /// When the disk is full, for instance.
    pub fn write(self, bytes: &[u8]) -> io::Result<()> {
        if !self.is_plain {
            return OpenOptions::new().write(true).truncate(true).open(&self.path)?.write_all(bytes);
        }
        let mut file = self.beside()?;
        file.write_all(bytes).map_err(reason)?;
        file.persist(&self.path).map(drop).map_err(|e| e.error)
    }

    fn beside(&self) -> io::Result<tempfile::NamedTempFile> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        if let Some(permissions) = self.permissions() {
            builder.permissions(permissions);
        }
        builder.tempfile_in(folder.unwrap_or(Path::new("."))).map_err(reason)
    }

    /// Those of the file that is there, else those of any new file.
    fn permissions(&self) -> Option<Permissions> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => Some(meta.permissions()),
            #[cfg(unix)]
            Err(_) => Some(std::os::unix::fs::PermissionsExt::from_mode(0o666)),
            #[cfg(not(unix))]
            Err(_) => None,
        }
    }
}

/// An error without the name of the file beside, which says nothing to anybody.
fn reason(error: io::Error) -> io::Error {
    let text = error.to_string();
    text.split_once(" at path ").map_or(error, |(reason, _)| io::Error::other(reason.to_owned()))
}
