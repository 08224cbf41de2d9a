//! How connections end: whoever ends one is answered, and hears why the other side did.

use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{Socket, TOKEN, address, agent, hello, until_agent};
use crate::on_both;

impl Socket {
    /// Ends the connection as the standard says; the code with which the other side answers.
    async fn close(mut self, code: u16) -> u16 {
        let frame = CloseFrame { code: code.into(), reason: "done".into() };
        self.inner.send(Message::Close(Some(frame))).await.expect("it is written");
        self.closed().await
    }

    /// Says all this without listening; the code and reason with which it is closed.
    async fn flood(&mut self, message: &str, times: usize) -> (u16, String) {
        for _ in 0..times {
            if self.inner.feed(Message::text(message.to_owned())).await.is_err() {
                break;
            }
        }
        let _ = self.inner.flush().await;
        self.closed_because().await
    }
}

on_both! {
    async fn who_closes_hears_his_own_code(world) {
        world.start().await;
        assert_eq!(agent(&world, "studio", 1).await.close(4000).await, 4000);
        until_agent(&world, "studio", "OFFLINE").await;
        assert_eq!(Socket::open(address(&world), "/agent").await.close(1000).await, 1000, "also before its hello");
        let mut ui = Socket::open(address(&world), "/ui").await;
        ui.hear("ui.ready").await;
        assert_eq!(ui.close(4001).await, 4001);
    }

    async fn who_says_too_much_is_told_so(world) {
        world.start().await;
        let mut noisy = agent(&world, "noisy", 1).await;
        let told = noisy.flood(r#"{"type":"agent.heartbeat"}"#, 5_000).await;
        assert_eq!(told, (1008, "more than 50 messages a second".to_owned()));
        until_agent(&world, "noisy", "OFFLINE").await;
        let mut ui = Socket::open(address(&world), "/ui").await;
        assert_eq!(ui.flood(r#"{"type":"ui.dance"}"#, 1_000).await, (1008, "too many messages".to_owned()));
    }

    async fn what_makes_no_sense_is_refused_with_what_does(world) {
        world.start().await;
        for slots in [json!(0), json!("2"), json!(null)] {
            let mut socket = Socket::open(address(&world), "/agent").await;
            let mut senseless = hello("studio", 1, json!([]), TOKEN);
            senseless["payload"]["capabilities"]["slots"] = slots;
            socket.say(senseless).await;
            let refusal = socket.hear("error").await["payload"]["message"].to_string();
            assert!(refusal.contains("`slots` takes a whole number from 1 to 1000"), "{refusal}");
            assert_eq!(socket.closed().await, 1008);
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM agents").await, 0);
        for since in ["abc", "-1"] {
            let mut ui = Socket::open(address(&world), &format!("/ui?since={since}")).await;
            let (code, reason) = ui.closed_because().await;
            assert_eq!(code, 1008);
            assert!(reason.contains("a whole number from 0"), "{reason}");
        }
    }
}
