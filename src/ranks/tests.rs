use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use candle_core::{Device, Tensor};

use super::sum::{Round, Sums};
use super::{Address, Error, Listener, Place, Ranks, Token, join};
use crate::monitor::Silent;
use crate::nn::Kernels;

const WAIT: Duration = Duration::from_secs(20);

fn here(port: u16) -> Address {
    Address {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

fn listener() -> Listener {
    Listener::open(&here(0)).expect("a port")
}

fn wait(listener: Listener, world: usize) -> Result<Ranks, Error> {
    listener.wait(world, &Token::of("s"), WAIT, &mut || Ok(()), &Silent)
}

fn call(port: u16, rank: usize, world: usize, secret: &str) -> Result<Ranks, Error> {
    let place = Place { rank, world };
    join(&here(port), place, &Token::of(secret), WAIT)
}

/// Runs `work` as each of so many ranks, and gives what it made, by rank.
fn together<T: Send + 'static>(world: usize, work: fn(Ranks) -> T) -> Vec<T> {
    let listener = listener();
    let port = listener.port();
    let others: Vec<_> = (1..world)
        .map(|rank| thread::spawn(move || work(call(port, rank, world, "s").expect("joined"))))
        .collect();
    let mut made = vec![work(wait(listener, world).expect("all came"))];
    made.extend(
        others
            .into_iter()
            .map(|rank| rank.join().expect("no panic")),
    );
    made
}

#[test]
fn all_ranks_are_told_what_each_says_in_their_order() {
    let told = together(4, |ranks| {
        let all = ranks.exchange(10 * ranks.rank()).expect("exchanged");
        let bytes = ranks.tell_bytes(vec![ranks.rank() as u8 + 7; 3], 3);
        (all, bytes.expect("told"))
    });
    assert_eq!(told, vec![(vec![0, 10, 20, 30], vec![7; 3]); 4]);
}

/// Numbers whose sum depends on the order of the additions, more than are read at a time.
fn gradient(number: usize) -> Tensor {
    let values = (0..300_000_usize).map(|i| {
        let x = ((i * 2_654_435_761 + number * 40_503) % 65_521) as f32 / 65_521.0 - 0.5;
        x * 10_f32.powi((i + number) as i32 % 9)
    });
    let values: Vec<f32> = values.collect();
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu).expect("numbers")
}

#[test]
fn a_sum_has_the_bits_of_one_process_whoever_has_the_gradients() {
    // Five gradients with factors of their own, some ranks with several of them and one with none.
    let factors = [0.3, 0.7, 1.0, 0.25, 0.1];
    let expected = gradient(9).zeros_like().expect("zeros");
    for (number, factor) in factors.iter().enumerate() {
        let source = [(0, gradient(number))];
        crate::nn::flat::accumulate_all(&Kernels::NONE, &expected, &source, *factor)
            .expect("added");
    }
    let expected: Vec<f32> = expected.to_vec1().expect("numbers");
    let made = together(3, |ranks| {
        let dealt: [Vec<Vec<usize>>; 2] = [
            vec![vec![0], vec![1, 2], vec![]],
            vec![vec![], vec![3], vec![4]],
        ];
        let factors = [0.3, 0.7, 1.0, 0.25, 0.1];
        let sum = gradient(9).zeros_like().expect("zeros");
        let (sums, note) = Sums::open(&ranks, &Device::Cpu).expect("TCP");
        assert!(note.is_none());
        for by_rank in dealt {
            let mine: Vec<Tensor> = by_rank[ranks.rank()].iter().map(|n| gradient(*n)).collect();
            let factors: Vec<Vec<f64>> = by_rank
                .iter()
                .map(|numbers| numbers.iter().map(|n| factors[*n]).collect())
                .collect();
            let round = Round {
                mine: &mine,
                factors: &factors,
            };
            sums.add(&ranks, &round, &Kernels::NONE, &sum)
                .expect("added");
        }
        sums.finish(&ranks, &sum).expect("finished");
        sum.to_vec1::<f32>().expect("numbers")
    });
    for (rank, sum) in made.iter().enumerate() {
        let same = sum
            .iter()
            .zip(&expected)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "rank {rank}");
    }
    // The order matters with these numbers, or the test could not fail.
    let backwards = gradient(9).zeros_like().expect("zeros");
    for (number, factor) in factors.iter().enumerate().rev() {
        let source = [(0, gradient(number))];
        crate::nn::flat::accumulate_all(&Kernels::NONE, &backwards, &source, *factor)
            .expect("added");
    }
    assert_ne!(backwards.to_vec1::<f32>().expect("numbers"), expected);
}

#[test]
fn a_rank_that_is_lost_or_ends_is_named_to_all_others() {
    let ended = together(3, |ranks| match ranks.rank() {
        2 => {
            ranks.end(&"its disk is full\nand more", None);
            String::new()
        }
        _ => {
            let error = ranks.exchange(0).expect_err("one is gone");
            ranks.end(&error, Some(&error));
            error.to_string()
        }
    });
    assert_eq!(ended[..2], ["rank 2 ended: its disk is full"; 2]);
    let lost = together(3, |ranks| match ranks.rank() {
        1 => String::new(),
        // Never says a word: rank 0 sees that the other is gone while it waits for this one, or before.
        2 => ranks.tell::<usize>(None).expect_err("the end").to_string(),
        _ => {
            let error = ranks.gather(0).expect_err("one is gone");
            ranks.end(&error, Some(&error));
            error.to_string()
        }
    });
    assert!(lost[0].starts_with("rank 1 was lost"), "{}", lost[0]);
    assert!(
        lost[2].starts_with("rank 1 ended: its process ended"),
        "{}",
        lost[2]
    );
}

#[test]
fn frames_that_no_rank_sends_end_with_its_number_and_take_no_memory() {
    for frame in [
        // Another kind, a message of 2^60 bytes, an end of as many, a message that is no JSON.
        [9, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
        [1, 0, 0, 0, 0, 0, 0, 0, 16].to_vec(),
        [4, 0, 0, 0, 0, 0, 0, 0, 16].to_vec(),
        [1, 2, 0, 0, 0, 0, 0, 0, 0, b'{', b'{'].to_vec(),
    ] {
        let listener = listener();
        let port = listener.port();
        let odd = thread::spawn(move || {
            let ranks = call(port, 1, 2, "s").expect("joined");
            ranks.peers[0].write_raw(&frame);
            // Until rank 0 has read it.
            ranks.tell::<usize>(None).expect_err("the end");
        });
        let ranks = wait(listener, 2).expect("it came");
        let error = ranks.gather(0).expect_err("refused").to_string();
        assert!(error.starts_with("rank 1 sent "), "{error}");
        drop(ranks);
        odd.join().expect("no panic");
    }
}

#[test]
fn strangers_hold_nobody_up() {
    let listener = listener();
    let port = listener.port();
    let mut strangers = Vec::new();
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 4096],
        b"plumbrk1\x01\0\0\0\x03\0\0\0 and no proof of anything at all",
    ] {
        for _ in 0..8 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
            stream.write_all(bytes).expect("sent");
            // Kept open, some without a word.
            strangers.push(stream);
        }
    }
    let others = [1, 2].map(|rank| thread::spawn(move || call(port, rank, 3, "s")));
    let ranks = wait(listener, 3).expect("both came");
    for other in others {
        other.join().expect("no panic").expect("joined");
    }
    drop(ranks);
    // No stranger got an answer.
    for mut stream in strangers {
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("set");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
}

#[test]
fn a_rank_is_turned_away_that_is_there_already_or_counts_otherwise() {
    let listener = listener();
    let port = listener.port();
    let first = thread::spawn(move || call(port, 1, 3, "s"));
    let zero = thread::spawn(move || wait(listener, 3));
    let says = |rank, world, secret| {
        let error = call(port, rank, world, secret).expect_err("turned away");
        error.to_string()
    };
    let counted = says(1, 4, "s");
    assert!(
        counted.ends_with("it says that there are 4 ranks, rank 0 says 3"),
        "{counted}"
    );
    let second = says(0, 3, "s");
    assert!(
        second.ends_with("it says that it is rank 0 too"),
        "{second}"
    );
    let stranger = says(2, 3, "another");
    assert!(stranger.contains("another PLUMB_RANKS_TOKEN"), "{stranger}");
    // The first may come a little later than the others.
    let twice = thread::spawn(move || call(port, 1, 3, "s"));
    thread::sleep(Duration::from_millis(300));
    let last = call(port, 2, 3, "s");
    assert!(last.is_ok() && zero.join().expect("no panic").is_ok());
    let both = [first, twice].map(|rank| rank.join().expect("no panic").err());
    let refused: Vec<String> = both.iter().flatten().map(Error::to_string).collect();
    assert_eq!(
        refused,
        ["rank 0 turned this rank away: there is a rank 1 already"]
    );
}

#[test]
fn who_does_not_come_is_named_and_a_taken_port_too() {
    let listener = listener();
    let port = listener.port();
    let taken = Listener::open(&here(port)).expect_err("taken").to_string();
    assert!(
        taken.starts_with(&format!("rank 0 cannot listen at 127.0.0.1:{port}: ")),
        "{taken}"
    );
    let second = thread::spawn(move || call(port, 2, 4, "s"));
    let short = Duration::from_millis(600);
    let absent = listener.wait(4, &Token::of("s"), short, &mut || Ok(()), &Silent);
    let absent = absent.expect_err("two are missing").to_string();
    assert!(
        absent.starts_with("of 4 ranks, ranks 1, 3 did not come within 0 s"),
        "{absent}"
    );
    assert!(second.join().expect("no panic").is_err());
    // Nobody listens there any more, and then something that is no rank 0.
    let place = Place { rank: 1, world: 2 };
    let nobody = join(&here(port), place, &Token::of("s"), Duration::ZERO);
    let nobody = nobody.expect_err("nobody").to_string();
    assert!(
        nobody.starts_with("rank 0 was not reached at 127.0.0.1:"),
        "{nobody}"
    );
    let other = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = other.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in other.incoming().flatten() {
            let _ = (&stream).write_all(b"220 mail.example ESMTP");
        }
    });
    let mail = join(&here(port), place, &Token::of("s"), WAIT)
        .expect_err("no rank")
        .to_string();
    assert!(mail.contains("is not rank 0 of this training"), "{mail}");
}
