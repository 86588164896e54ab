//! Compressed bodies between servers: "Content Codings" of RFC 9110. The signature of a request is over its JSON, so it does
//! not matter to it how the bytes travel.
//!
//! Whoever sends a compressed body must know that the other side reads it: requests say so in `Accept-Encoding`, and
//! answers do too, for the requests to come (RFC 9110, section 12.5.3).

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

/// The codings that this node reads, as it says in `Accept-Encoding`.
pub const OFFER: &str = "zstd, gzip";

/// Smaller bodies are not worth the work, in bytes.
pub const WORTH: usize = 512;

/// Larger bodies are worked on by another thread, in bytes: others wait for this one.
const LARGE: usize = 128 << 10;

/// How much of what was before a compressed body may refer to, as a power of two: 8 MiB, as RFC 8878 recommends to accept.
const WINDOW_LOG: u32 = 23;

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Better in every way, but not known everywhere.
    Zstd,
    /// Known everywhere.
    Gzip,
}

/// Why a compressed body can not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// It is more than so many bytes when it is taken apart.
    #[error("the body is longer than {0} bytes")]
    TooLarge(u64),
    /// It was not compressed so, or not to its end.
    #[error("the compressed body is damaged")]
    Damaged,
    /// It was compressed in a way that nobody was offered.
    #[error("the body is compressed in a way that is not known here")]
    Unknown,
}

impl Coding {
    /// What stands in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// What `Content-Encoding` says; none if the body is as it is.
    ///
    /// # Errors
    /// When it is a coding that is not known here, or several.
    pub fn of(content_encoding: &str) -> Result<Option<Self>, Bad> {
        match content_encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "zstd" => Ok(Some(Self::Zstd)),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            _ => Err(Bad::Unknown),
        }
    }

    /// The best of those that an `Accept-Encoding` lists.
    pub fn best(accept_encoding: &str) -> Option<Self> {
        let listed = |name: &str| {
            accept_encoding.split(',').any(|one| {
                let mut parts = one.split(';').map(str::trim);
                let is_meant = parts
                    .next()
                    .is_some_and(|one| one.eq_ignore_ascii_case(name));
                let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
                is_meant && weight.is_none_or(|weight| weight > 0.0)
            })
        };
        [Self::Zstd, Self::Gzip]
            .into_iter()
            .find(|coding| listed(coding.name()))
    }

    /// A body as it travels.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub async fn compress(self, body: Bytes) -> io::Result<Bytes> {
        off_thread(body.len(), move || self.pack(&body)).await?
    }

    /// A body as it was before, of at most so many bytes.
    ///
    /// # Errors
    /// See [`Bad`].
    pub async fn decompress(self, body: Bytes, most: u64) -> Result<Bytes, Bad> {
        // It may become large however small it is.
        let size = usize::try_from(most)
            .unwrap_or(usize::MAX)
            .min(body.len().saturating_mul(8));
        let unpacked = off_thread(size, move || self.unpack(&body, most)).await;
        unpacked.map_err(|_| Bad::Damaged)?
    }

    fn pack(self, body: &[u8]) -> io::Result<Bytes> {
        let packed = match self {
            Self::Zstd => zstd::bulk::compress(body, zstd::DEFAULT_COMPRESSION_LEVEL)?,
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(body)?;
                encoder.finish()?
            }
        };
        Ok(packed.into())
    }

    fn unpack(self, body: &[u8], most: u64) -> Result<Bytes, Bad> {
        match self {
            Self::Zstd => {
                let decoder = zstd::Decoder::with_buffer(body).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG)?;
                    Ok(decoder)
                });
                read(decoder.map_err(|_| Bad::Damaged)?, most)
            }
            Self::Gzip => read(GzDecoder::new(body), most),
        }
    }
}

/// Reads to the end, or a byte beyond the limit: then it does not matter how much more there would be.
fn read(decoder: impl Read, most: u64) -> Result<Bytes, Bad> {
    let mut whole = Vec::new();
    let read = decoder.take(most.saturating_add(1)).read_to_end(&mut whole);
    let length = read.map_err(|_| Bad::Damaged)?;
    if u64::try_from(length).is_ok_and(|length| length <= most) {
        Ok(whole.into())
    } else {
        Err(Bad::TooLarge(most))
    }
}

/// Does what takes long for large bodies where nobody waits.
async fn off_thread<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if size < LARGE {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Coding; 2] = [Coding::Zstd, Coding::Gzip];

    #[tokio::test]
    async fn what_was_compressed_comes_back() {
        for coding in BOTH {
            for size in [0, 1, 5_000, 3_000_000] {
                let body = Bytes::from(b"{\"a\":1}".repeat(size));
                let packed = coding.compress(body.clone()).await.unwrap();
                assert!(size < 5_000 || packed.len() * 10 < body.len(), "{coding:?}");
                let most = u64::try_from(body.len()).unwrap();
                assert_eq!(coding.decompress(packed.clone(), most).await, Ok(body));
                if most > 0 {
                    let less = coding.decompress(packed, most - 1).await;
                    assert_eq!(less, Err(Bad::TooLarge(most - 1)));
                }
            }
        }
    }

    #[tokio::test]
    async fn bombs_and_garbage_are_refused() {
        for coding in BOTH {
            let bomb = coding.compress(vec![0; 100_000_000].into()).await.unwrap();
            assert!(bomb.len() < 200_000, "{}", bomb.len());
            let told = coding.decompress(bomb.clone(), 1 << 20).await;
            assert_eq!(told, Err(Bad::TooLarge(1 << 20)));
            let cut = bomb.slice(..bomb.len() - 9);
            assert_eq!(coding.decompress(cut, 1 << 30).await, Err(Bad::Damaged));
            let garbage = Bytes::from_static(b"{\"errcode\":\"M_UNKNOWN\"}");
            assert_eq!(coding.decompress(garbage, 100).await, Err(Bad::Damaged));
        }
        // One that asks for a window of 2 GiB.
        let greedy = Bytes::from_static(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 1, 0, 0]);
        assert_eq!(
            Coding::Zstd.decompress(greedy, 100).await,
            Err(Bad::Damaged)
        );
    }

    #[test]
    fn the_best_of_what_is_offered_is_taken() {
        for (offer, expect) in [
            (OFFER, Some(Coding::Zstd)),
            ("gzip, deflate, br", Some(Coding::Gzip)),
            ("GZIP;q=1.0, zstd ; q=0", Some(Coding::Gzip)),
            ("gzip;q=0, br", None),
            ("identity", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(Coding::best(offer), expect, "{offer}");
        }
        assert_eq!(Coding::of("identity"), Ok(None));
        assert_eq!(Coding::of("Zstd"), Ok(Some(Coding::Zstd)));
        assert_eq!(Coding::of("br"), Err(Bad::Unknown));
        assert_eq!(Coding::of("gzip, zstd"), Err(Bad::Unknown));
    }
}
