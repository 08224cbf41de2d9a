//! What ffmpeg says of its progress, in either of its ways: `-progress pipe:1` writes a block of `key=value` lines that
//! ends in `progress=…`; without it one status line such as `frame= 51 fps= 25 … time=00:00:01.88 bitrate=… speed=1x`.

use crate::planes::fleet::protocol::Progress;

/// Collects the fields of a report.
#[derive(Debug, Default)]
pub(super) struct Reader {
    open: Progress,
}

/// What a line was.
#[derive(Debug, PartialEq)]
pub(super) enum Read {
    /// Not about progress: the program's own words.
    Words,
    /// A part of a report.
    Part,
    /// The end of one.
    Whole(Progress),
}

impl Reader {
    pub(super) fn line(&mut self, line: &str) -> Read {
        if let Some(progress) = status_line(line) {
            return Read::Whole(progress);
        }
        let Some((key, value)) = line.split_once('=') else { return Read::Words };
        match key {
            "progress" if matches!(value, "continue" | "end") => return Read::Whole(std::mem::take(&mut self.open)),
            "frame" | "fps" | "bitrate" | "total_size" | "out_time_us" | "drop_frames" | "speed" => {
                set(&mut self.open, key, value);
            }
            "out_time_ms" | "out_time" | "dup_frames" => {}
            _ if key.starts_with("stream_") && key.ends_with("_q") => {}
            _ => return Read::Words,
        }
        Read::Part
    }
}

fn status_line(line: &str) -> Option<Progress> {
    if !(line.contains("time=") && line.contains("bitrate=") && (line.contains("size=") || line.contains("frame="))) {
        return None;
    }
    let mut progress = Progress::default();
    // Values are padded: `frame=   51 fps= 25`. A key is the word before `=`, its value the next word.
    for (at, _) in line.match_indices('=') {
        let key = line[..at].rsplit(' ').next().unwrap_or_default();
        let value = line[at + 1..].split_whitespace().next().unwrap_or_default();
        match key {
            "time" => progress.position_ms = clock_time(value),
            "size" | "Lsize" => {
                set(&mut progress, "size_kibibytes", value.trim_end_matches("KiB").trim_end_matches("kB"));
            }
            "drop" => set(&mut progress, "drop_frames", value),
            _ => set(&mut progress, key, value),
        }
    }
    Some(progress)
}

/// `00:00:01.88` in milliseconds.
fn clock_time(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hours, minutes) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
    let seconds = parts.next()?.parse::<f64>().ok().filter(|seconds| (0.0..60.0).contains(seconds))?;
    Some(i64::from(hours) * 3_600_000 + i64::from(minutes) * 60_000 + (seconds * 1_000.0).round() as i64)
}

/// What ffmpeg says as `N/A` is missing.
fn set(progress: &mut Progress, key: &str, value: &str) {
    let value = value.trim();
    let whole = || value.parse::<i64>().ok().filter(|number| *number >= 0);
    let broken = |unit: &str| value.trim_end_matches(unit).parse::<f64>().ok().filter(|number| number.is_finite());
    match key {
        "frame" => progress.frames = whole(),
        "fps" => progress.fps = broken(""),
        "bitrate" => progress.bitrate_kbps = broken("kbits/s"),
        "total_size" => progress.bytes = whole(),
        "size_kibibytes" => progress.bytes = whole().and_then(|size| size.checked_mul(1024)),
        "out_time_us" => progress.position_ms = whole().map(|time| time / 1_000),
        "drop_frames" => progress.dropped_frames = whole(),
        "speed" => progress.speed = broken("x"),
        _ => {}
    }
}

/// Whether anything has come out yet.
pub(super) fn has_begun(progress: &Progress) -> bool {
    progress.frames.is_some_and(|frames| frames > 0) || progress.position_ms.is_some_and(|position| position > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_block_is_one_report() {
        let mut reader = Reader::default();
        let block = "frame=215\nfps=25.01\nstream_0_0_q=18.0\nbitrate=  93.4kbits/s\ntotal_size=98396\nout_time_us=8429000\n\
                     out_time_ms=8429000\nout_time=00:00:08.429000\ndup_frames=0\ndrop_frames=3\nspeed=0.981x";
        for line in block.lines() {
            assert_eq!(reader.line(line), Read::Part, "{line}");
        }
        let Read::Whole(progress) = reader.line("progress=continue") else { panic!("the block has ended") };
        let wanted = json!({ "frames": 215, "fps": 25.01, "positionMs": 8429, "bitrateKbps": 93.4, "bytes": 98396,
            "droppedFrames": 3, "speed": 0.981 });
        assert_eq!(json!(progress), wanted);
        assert!(has_begun(&progress));
    }

    #[test]
    fn a_status_line_is_a_report() {
        let read = |line: &str| -> Value {
            match Reader::default().line(line) {
                Read::Whole(progress) => json!(progress),
                other => panic!("{line}: {other:?}"),
            }
        };
        let line = "frame=  222 fps= 25 q=-1.0 Lsize=     175kB time=01:00:08.84 bitrate= 162.5kbits/s drop=2 speed=0.997x    ";
        let wanted = json!({ "frames": 222, "fps": 25.0, "positionMs": 3_608_840, "bitrateKbps": 162.5,
            "bytes": 179_200, "droppedFrames": 2, "speed": 0.997 });
        assert_eq!(read(line), wanted);
        let audio = "size=N/A time=00:00:02.00 bitrate=N/A speed=   2x";
        assert_eq!(read(audio), json!({ "positionMs": 2_000, "speed": 2.0 }));
    }

    #[test]
    fn other_words_stay_words() {
        for line in ["[libx264 @ 0x5] frame I:1", "rtmp://a/b?x=1: Input/output error", "progress=soon", "width=100"] {
            assert_eq!(Reader::default().line(line), Read::Words, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,40}(time=|size=|bitrate=|frame=)\\PC{0,20}time=\\PC{0,12} bitrate=\\PC{0,9}") {
            let _ = Reader::default().line(&line);
        }
    }
}
