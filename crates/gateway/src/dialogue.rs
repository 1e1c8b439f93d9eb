//! Whose turn it is in a session: whether the engine works, or waits for its client. Read from the types of the messages
//! alone (PostgreSQL's manual, 55.2 and 55.7), so that only time in which the engine works counts as busy.

/// What was said so far, as far as it tells whose turn it is.
#[derive(Default)]
pub(crate) struct Dialogue {
    /// Messages that ask for a `ReadyForQuery` (Query, FunctionCall, Sync), and those of it that came.
    asked: u64,
    answered: u64,
    /// Messages of the extended protocol since the last of those, each with one answer; and answers since the last
    /// `ReadyForQuery`. They say something while no `ReadyForQuery` is missing.
    owed: u64,
    given: u64,
    /// So many of the owed ones the client has asked for (Flush).
    flushed: u64,
    /// After an error the engine passes over everything up to a Sync.
    has_failed: bool,
    /// What began the last statement: Query or Execute.
    begun_by: u8,
    /// The engine takes the rows of a COPY, and nothing else; what began it.
    copying_in: Option<u8>,
    /// Copies whose rows came to their end before the engine said that it takes them.
    ended_early: u64,
}

impl Dialogue {
    /// A message of the client's has begun.
    pub(crate) fn sent(&mut self, tag: u8) {
        match tag {
            // Behind messages of the extended protocol without a Sync: after an error among them the engine passes over it, and an
            // answer that never comes must not make it seem at work for ever.
            b'Q' | b'F' if self.owed > 0 => return,
            b'Q' | b'F' | b'S' => {
                self.asked += 1;
                (self.owed, self.flushed) = (0, 0);
            }
            b'P' | b'B' | b'C' | b'D' | b'E' => self.owed += 1,
            b'H' => self.flushed = self.owed,
            // Every Sync until here was passed over; a Query will be answered, an Execute once a Sync follows.
            b'c' | b'f' if self.copying_in.is_some() => self.end_copying_in(),
            // The rows were sent, and ended, before the engine said that it takes them.
            b'c' | b'f' if self.asked > self.answered => self.ended_early += 1,
            _ => {}
        }
        if matches!(tag, b'Q' | b'E') {
            self.begun_by = tag;
        }
    }

    /// A message of the engine's has begun.
    pub(crate) fn came(&mut self, tag: u8) {
        match tag {
            b'Z' => {
                // An engine that says it more often than it was asked gains nothing.
                self.answered = (self.answered + 1).min(self.asked);
                self.given = 0;
                self.has_failed = false;
                self.copying_in = None;
                if self.answered == self.asked {
                    self.ended_early = 0;
                }
            }
            b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'C' | b'T' => self.given += 1,
            b'E' => {
                self.end_copying_in();
                self.has_failed = true;
            }
            b'G' if self.ended_early > 0 => self.ended_early -= 1,
            b'G' => self.copying_in = Some(self.begun_by),
            _ => {}
        }
    }

    fn end_copying_in(&mut self) {
        if let Some(begun_by) = self.copying_in.take() {
            self.answered = self.asked - u64::from(begun_by == b'Q').min(self.asked);
        }
    }

    /// Whether the engine works at what it was told. `is_last_whole` says whether the client's last message, of that type, has
    /// come to its end: the engine waits for the rest of one that has not.
    pub(crate) fn is_engine_working(&self, is_last_whole: bool, last_tag: u8) -> bool {
        if self.copying_in.is_some() {
            return false;
        }
        let is_half_asked = !is_last_whole && matches!(last_tag, b'Q' | b'F' | b'S');
        let asked = self.asked - u64::from(is_half_asked).min(self.asked);
        asked > self.answered || (!self.has_failed && self.given < self.flushed)
    }

    /// Whether something that the client began has not come to its end, whoever has to move next.
    pub(crate) fn is_anything_open(&self) -> bool {
        self.copying_in.is_some() || self.asked > self.answered || self.is_owed()
    }

    fn is_owed(&self) -> bool {
        !self.has_failed && self.given < self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After these messages, `>` before the client's and `<` before the engine's: whether the engine works.
    fn works(said: &str) -> bool {
        let mut dialogue = Dialogue::default();
        let mut last = 0;
        for word in said.split_whitespace() {
            match word.as_bytes() {
                [b'>', tag] => {
                    dialogue.sent(*tag);
                    last = *tag;
                }
                [b'<', tag] => dialogue.came(*tag),
                _ => panic!("{word}"),
            }
        }
        let works = dialogue.is_engine_working(true, last);
        assert!(!works || dialogue.is_anything_open(), "{said}: it works at nothing");
        works
    }

    #[test]
    fn a_query_is_worked_at_until_the_engine_is_ready() {
        for (said, expected) in [
            ("", false),
            (">Q", true),
            (">Q <T <D <C", true),
            (">Q <T <D <C <Z", false),
            (">Q >Q <C <Z", true),
            (">Q >Q <C <Z <E <Z", false),
            (">F", true),
            (">F <V <Z", false),
            // After an error the engine passes over a Query, too, up to a Sync.
            (">P >Q >F >S <E <Z", false),
            (">P >H <E >Q >F >S <Z", false),
            (">P >B >D >E >S", true),
            (">P >B >D >E >S <1 <2 <T <D <C", true),
            (">P >B >D >E >S <1 <2 <T <D <C <Z", false),
            ("<N <A", false),
        ] {
            assert_eq!(works(said), expected, "{said}");
        }
    }

    #[test]
    fn what_is_flushed_is_worked_at_until_it_is_answered() {
        for (said, expected) in [
            // Nothing more is to come before the client goes on.
            (">P >B >E", false),
            (">P >B >E >H", true),
            (">P >B >E >H <1 <2 <D", true),
            (">P >B >E >H <1 <2 <D <s", false),
            (">P >B >E >H <1 <2 <D <s >E >H", true),
            (">P >D >H <1 <t <T", false),
            (">P >D >H <1 <t <n", false),
            // After an error it waits for a Sync.
            (">P >B >E >H <1 <E", false),
            (">P >B >E >H <1 <E >B >E >H", false),
            (">P >B >E >H <1 <E >S", true),
            (">P >B >E >H <1 <E >S <Z", false),
            // What is sent behind a Flush, and not asked for, hides nothing.
            (">P >B >E >H >P", true),
            (">P >B >E >H >P <1 <2 <C", false),
            // What is sent behind a Sync is answered behind its ReadyForQuery.
            (">P >B >E >S >B >E >H <1 <2 <C <Z", true),
            (">P >B >E >S >B >E >H <1 <2 <C <Z <2 <C", false),
        ] {
            assert_eq!(works(said), expected, "{said}");
        }
    }

    #[test]
    fn while_rows_are_taken_in_it_is_the_client_s_turn() {
        for (said, expected) in [
            (">Q <G", false),
            (">Q <G >d >d", false),
            (">Q <G >d >c", true),
            (">Q <G >d >c <C <Z", false),
            (">Q <G >f <E <Z", false),
            (">Q <G >d <E", true),
            (">Q <G >d <E <Z", false),
            // As libpq does it in the extended protocol: the Sync behind the Execute is passed over.
            (">P >B >D >E >S <1 <2 <n <G >d", false),
            (">P >B >D >E >S <1 <2 <n <G >d >c >S", true),
            (">P >B >D >E >S <1 <2 <n <G >d >c >S <C <Z", false),
            (">P >B >D >E >S <1 <2 <n <G >d <E", false),
            (">P >B >D >E >S <1 <2 <n <G >d <E >S <Z >Q", true),
            // Rows that come without waiting for the engine, which may wait for a lock then.
            (">Q >d >c <G", true),
            (">Q >d >c <G <C <Z", false),
            (">Q >d >f <G <E <Z", false),
            (">Q >d >c <E <Z >Q <G", false),
            // And out: the engine sends by itself.
            (">Q <H <d", true),
            (">Q <H <d <c <C <Z", false),
        ] {
            assert_eq!(works(said), expected, "{said}");
        }
    }

    #[test]
    fn a_message_that_stops_in_the_middle_is_the_client_s_turn() {
        let mut dialogue = Dialogue::default();
        dialogue.sent(b'Q');
        assert!(!dialogue.is_engine_working(false, b'Q'));
        assert!(dialogue.is_engine_working(true, b'Q') && dialogue.is_anything_open());
        // One is worked at while the next comes in.
        dialogue.sent(b'Q');
        assert!(dialogue.is_engine_working(false, b'Q'));
    }

    #[test]
    fn an_engine_that_is_ready_unasked_gains_nothing() {
        let mut dialogue = Dialogue::default();
        for _ in 0..3 {
            dialogue.came(b'Z');
        }
        dialogue.sent(b'Q');
        assert!(dialogue.is_engine_working(true, b'Q'));
        dialogue.came(b'G');
        dialogue.came(b'E');
        assert!(dialogue.is_engine_working(true, b'Q'));
    }
}
