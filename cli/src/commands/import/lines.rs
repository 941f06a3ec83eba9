//! Lines of a file nobody vouches for: of bounded length, numbered, gzip taken off.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use shared::jobs::import::Line;
use shared::models::{EventError, MAX_EVENT_BYTES};

const BUFFER: usize = 1 << 18;
/// What a file begins with that is no text: (bytes, what to do about it).
const FOREIGN: [(&[u8], &str); 3] = [
    (&[0x28, 0xb5, 0x2f, 0xfd], "it is compressed with zstd: zstd -dc FILE | bigbrotr import -"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "it is compressed with xz: xz -dc FILE | bigbrotr import -"),
    (b"PAR1", "it is Parquet; import reads JSON lines"),
];

/// Counts what is read of the file itself, for a bar.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

/// The lines of one file.
pub(super) struct Lines {
    input: Box<dyn BufRead>,
    number: u64,
    /// Bytes of the file read so far.
    pub(super) bytes: Rc<Cell<u64>>,
    /// Bytes of the file, if it has a length.
    pub(super) length: Option<u64>,
}

impl Lines {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let bytes = Rc::new(Cell::new(0));
        let (inner, length): (Box<dyn Read>, Option<u64>) = if path == Path::new("-") {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(path)?;
            let length = Some(file.metadata()?.len()).filter(|length| *length > 0);
            (Box::new(file), length)
        };
        let mut input = BufReader::with_capacity(BUFFER, Counted { inner, bytes: Rc::clone(&bytes) });
        let head = input.fill_buf()?;
        if let Some((_, advice)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, *advice));
        }
        let input: Box<dyn BufRead> = if head.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(input)))
        } else {
            Box::new(input)
        };
        Ok(Self { input, number: 0, bytes, length })
    }

    /// The next line that is not blank, or the number of one that cannot be an event. A line that is too long is passed
    /// over, not kept.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<Line, (u64, EventError)>>> {
        loop {
            let mut line: Vec<u8> = Vec::new();
            let (mut any, mut too_long) = (false, false);
            loop {
                let buffer = match self.input.fill_buf() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    other => other?,
                };
                if buffer.is_empty() {
                    break;
                }
                any = true;
                let end = buffer.iter().position(|byte| *byte == b'\n');
                let piece = &buffer[..end.unwrap_or(buffer.len())];
                too_long |= line.len() + piece.len() > MAX_EVENT_BYTES;
                if too_long {
                    line = Vec::new();
                } else {
                    line.extend_from_slice(piece);
                }
                let used = piece.len() + usize::from(end.is_some());
                self.input.consume(used);
                if end.is_some() {
                    break;
                }
            }
            if !any {
                return Ok(None);
            }
            self.number += 1;
            if too_long {
                return Ok(Some(Err((self.number, EventError::TooLarge))));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Ok(Some(match String::from_utf8(line) {
                Ok(text) => Ok(Line { number: self.number, text }),
                Err(_) => Err((self.number, EventError::NotJson)),
            }));
        }
    }
}
