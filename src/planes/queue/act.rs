//! What the loop may do to the queue.
