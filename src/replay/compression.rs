//! Decompresses captures while they are read. The first bytes of a file tell how it is compressed, not its name.
//!
//! Memory is bounded: nothing is decompressed before it is read, and a zstd frame has a limited window. A file that
//! ends too early gives everything before its end, and then an error. So does a damaged one.

use std::{
    error::Error,
    io::{self, BufRead, BufReader, Chain, Cursor, Read},
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// How many bytes of a file tell its compression.
const MAGIC_LENGTH: u64 = 4;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// The end of the magic number of a zstd frame without content. Its first byte is 0x50 to 0x5f.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// Compressions that are not supported.
const OTHERS: [(&[u8], &str); 4] = [
    (b"\xfd7zX", ": it is compressed; decompress it with xz -d first"),
    (b"BZh", ": it is compressed; decompress it with bzip2 -d first"),
    (&[0x04, 0x22, 0x4d, 0x18], ": it is compressed; decompress it with lz4 -d first"),
    (b"PK\x03\x04", ": it is an archive; unpack it with unzip first"),
];
/// The maximum window of a zstd frame: that of `zstd --long` and of level 22.
const MAX_WINDOW: u64 = 128 << 20;
/// A zstd block without content that is the last of its frame, and a checksum.
const LAST_BLOCK: [u8; 7] = [1, 0, 0, 0, 0, 0, 0];

/// Why compressed data cannot be read on.
#[derive(Debug, thiserror::Error)]
#[error("the {format} data {what}, at byte {at} of the file")]
pub struct CompressionError {
    format: &'static str,
    what: String,
    /// The number of bytes before the error.
    at: u64,
}

/// What keeps the content `start` from being a capture, if it is compressed once more or in another format.
pub fn other_compression(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(GZIP) || is_zstd(start) {
        return Some(": it is compressed twice; decompress it once first");
    }
    let known = OTHERS.iter().find(|(magic, _)| start.starts_with(magic));
    known.map(|(_, advice)| *advice)
}

fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(ZSTD)
        || matches!(start, [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE))
}

/// The content of a file, decompressed if it is compressed.
pub struct Decompressor<R> {
    decoder: Decoder<Source<R>>,
}

/// The file: its first bytes, which tell the compression, and the rest.
type Source<R> = CountedInput<Chain<Cursor<Vec<u8>>, BufReader<R>>>;

enum Decoder<R> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<ZstdDecoder<R>>),
}

impl<R: Read> Decompressor<R> {
    /// Reads the first bytes of `input`.
    pub fn open(mut input: R) -> io::Result<Self> {
        let mut start = Vec::new();
        input.by_ref().take(MAGIC_LENGTH).read_to_end(&mut start)?;
        let (is_gzip, is_zstd) = (start.starts_with(GZIP), is_zstd(&start));
        let input = Cursor::new(start).chain(BufReader::new(input));
        let input = CountedInput { input, count: 0 };
        let decoder = match (is_gzip, is_zstd) {
            (true, _) => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
            (_, true) => Decoder::Zstd(Box::new(ZstdDecoder::new(input))),
            _ => Decoder::Plain(input),
        };
        Ok(Self { decoder })
    }

    /// The number of bytes of the file that were read so far, compressed as they are.
    pub fn position(&self) -> u64 {
        match &self.decoder {
            Decoder::Plain(input) => input.count,
            Decoder::Gzip(decoder) => decoder.get_ref().count,
            Decoder::Zstd(decoder) => decoder.input.count,
        }
    }

    /// An error of the decompression with its position. Errors of the operating system stay as they are.
    fn located(&self, error: io::Error) -> io::Error {
        let format = match &self.decoder {
            Decoder::Plain(_) => return error,
            _ if error.raw_os_error().is_some() => return error,
            Decoder::Gzip(_) => "gzip",
            Decoder::Zstd(_) => "zstd",
        };
        let what = match is_early_end(&error) {
            true => "end too early".to_owned(),
            false => format!("are damaged ({error})"),
        };
        let located = CompressionError { format, what, at: self.position() };
        io::Error::new(io::ErrorKind::InvalidData, located)
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match &mut self.decoder {
            Decoder::Plain(input) => input.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            result => result.map_err(|error| self.located(error)),
        }
    }
}

/// Whether `error`, or what caused it, is that the input has ended.
fn is_early_end(error: &io::Error) -> bool {
    let ends = |error: &(dyn Error + 'static)| {
        let error = error.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
    };
    // The source of an io::Error with an inner error is that of the inner one.
    let inner = error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    let mut causes = std::iter::successors(inner, |cause| (*cause).source());
    error.kind() == io::ErrorKind::UnexpectedEof || causes.any(ends)
}

/// An input that counts the bytes that are taken from it.
struct CountedInput<R> {
    input: R,
    count: u64,
}

impl<R: Read> Read for CountedInput<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for CountedInput<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.count += count as u64;
    }
}

/// Decompresses zstd frames, one after the other.
struct ZstdDecoder<R> {
    input: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
    /// The error to return after the content before it.
    failure: Option<io::Error>,
}

impl<R: BufRead> ZstdDecoder<R> {
    fn new(input: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { input, decoder, is_in_frame: false, failure: None }
    }

    /// Reads the header of the next frame. Returns whether there is one, or one to skip.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.decoder.reset(&mut self.input) {
            Ok(()) => self.is_in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let length = u64::from(length);
                if io::copy(&mut self.input.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
                let limit = MAX_WINDOW;
                return Err(io::Error::other(format!(
                    "a window of {requested} bytes is over the limit of {limit}; decompress the file with zstd -d --long=31 first"
                )));
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(true)
    }

    /// Decompresses the next block.
    fn next_block(&mut self) {
        let one = || BlockDecodingStrategy::UptoBlocks(1);
        if let Err(error) = self.decoder.decode_blocks(&mut self.input, one()) {
            self.failure = Some(io::Error::other(error));
            // The decoder returns its window only at the end of the frame.
            let _ = self.decoder.decode_blocks(&LAST_BLOCK[..], one());
        }
    }

    /// Checks a frame whose content was read.
    fn end_frame(&mut self) -> io::Result<()> {
        self.is_in_frame = false;
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let stated = self.decoder.get_checksum_from_data();
        if stated.is_some() && stated != self.decoder.get_calculated_checksum() {
            return Err(io::Error::other("the checksum is wrong"));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for ZstdDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                continue;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            match self.failure.is_some() || self.decoder.is_finished() {
                true => self.end_frame()?,
                false => self.next_block(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    /// The content of `file`, and the error after it. One byte is read at a time, as from a slow pipe.
    fn read(file: &[u8]) -> (Vec<u8>, Option<String>) {
        struct Pipe<'a>(&'a [u8]);
        impl Read for Pipe<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(1);
                self.0.read(&mut buffer[..count])
            }
        }
        let mut input = Decompressor::open(Pipe(file)).unwrap();
        let mut content = Vec::new();
        let error = input.read_to_end(&mut content).err();
        if error.is_none() {
            assert_eq!(input.position(), file.len() as u64);
        }
        (content, error.map(|error| error.to_string()))
    }

    /// Bytes that can be compressed, but not to almost nothing.
    fn content(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"PORT 1,2\r\n"[(state >> 24) as usize % 10]
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn content_is_the_same_whatever_the_compression() {
        let content = content(300_000);
        assert_eq!(read(&content), (content.clone(), None));
        for file in [gzip(&content), zstd(&content)] {
            assert!(file.len() < content.len());
            assert_eq!(read(&file), (content.clone(), None));
        }
        assert_eq!(read(b""), (Vec::new(), None));
        assert_eq!(read(b"\x1f"), (b"\x1f".to_vec(), None));
    }

    #[test]
    fn several_members_and_frames_follow_each_other() {
        let skipped = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"???"].concat();
        let parts = [zstd(b"one, "), skipped.clone(), zstd(b""), zstd(b"two"), skipped];
        assert_eq!(read(&parts.concat()), (b"one, two".to_vec(), None));
        assert_eq!(read(&parts[1..].concat()), (b"two".to_vec(), None));
        let parts = [gzip(b"one, "), gzip(b""), gzip(b"two")];
        assert_eq!(read(&parts.concat()), (b"one, two".to_vec(), None));
    }

    #[test]
    fn what_comes_before_an_early_end_is_read() {
        let content = content(300_000);
        for (format, file) in [("gzip", gzip(&content)), ("zstd", zstd(&content))] {
            let mut most = 0;
            for cut in [7, 100, file.len() / 2, file.len() - 1] {
                let (found, error) = read(&file[..cut]);
                let expected =
                    format!("the {format} data end too early, at byte {cut} of the file");
                assert_eq!(error.unwrap(), expected);
                assert!(content.starts_with(&found));
                most = most.max(found.len());
            }
            assert_eq!(most, content.len(), "{format}");
        }
    }

    #[test]
    fn damage_is_reported_with_its_position() {
        for (format, mut file) in [("gzip", gzip(b"some content")), ("zstd", zstd(b"some content"))]
        {
            let at = file.len() - if format == "gzip" { 8 } else { 4 }; // the checksum
            file[at] ^= 1;
            let (found, error) = read(&file);
            assert_eq!(found, b"some content", "{format}");
            let error = error.unwrap();
            assert!(error.starts_with(&format!("the {format} data are damaged (")), "{error}");
            assert!(error.ends_with(&format!(", at byte {} of the file", file.len())), "{error}");
        }
    }

    /// A window descriptor of 2 GiB, with the advice what to do.
    #[test]
    fn zstd_window_is_limited() {
        let (_, error) = read(&[ZSTD, &[0, 21 << 3, 1, 0, 0]].concat());
        let error = error.unwrap();
        assert!(error.contains("a window of 2147483648 bytes is over the limit"), "{error}");
        assert!(error.contains("zstd -d --long=31"), "{error}");
    }

    /// A bomb is decompressed as it is read.
    #[test]
    fn only_what_is_read_is_decompressed() {
        let bomb = vec![0; 16 << 20];
        for file in [gzip(&bomb), zstd(&bomb)] {
            let mut input = Decompressor::open(&file[..]).unwrap();
            input.read_exact(&mut [0; 4096]).unwrap();
            assert!(input.position() < file.len() as u64 / 2, "{}", input.position());
        }
    }

    proptest! {
        #[test]
        fn damaged_files_do_not_panic(
            is_zstd: bool,
            length in 0..5000usize,
            cut: Option<prop::sample::Index>,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let content = content(length);
            let mut file = if is_zstd { zstd(&content) } else { gzip(&content) };
            for (at, value) in damage {
                let at = at.index(file.len());
                file[at] = value;
            }
            if let Some(cut) = cut {
                file.truncate(cut.index(file.len()));
            }
            let mut input = Decompressor::open(&file[..]).unwrap();
            // A file may become a bomb.
            let mut read = Vec::new();
            let _ = input.by_ref().take(1 << 22).read_to_end(&mut read);
            prop_assert!(input.position() <= file.len() as u64);
        }
    }

    #[test]
    fn other_compressions_are_named() {
        for (start, tool) in [(&b"\xfd7zX"[..], "xz"), (b"BZh9", "bzip2"), (GZIP, "twice")] {
            assert!(other_compression(start).unwrap().contains(tool));
        }
        assert_eq!(other_compression(b"#!/bin/sh"), None);
    }
}
