//! What becomes of each file of a data folder.

use super::*;

/// What a scan of `folder` told: notes and problems.
fn told(folder: &Folder) -> (Result<Dataset, Error>, Vec<String>, Vec<String>) {
    let recorder = Recorder::default();
    let scanned = Dataset::scan(std::slice::from_ref(folder), &recorder);
    (scanned, recorder.notes(), recorder.problems())
}

fn names(dataset: &Dataset) -> Vec<String> {
    let name = |item: &Item| {
        item.picture
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
    };
    dataset.items.iter().filter_map(name).collect()
}

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(6, 4, image::Rgb([1, 7, 9]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("encodes");
    bytes.into_inner()
}

#[test]
fn content_decides_and_not_the_extension() {
    let place = Place::new();
    let pictures = [
        "a.jfif",
        "b.jpe",
        "c.pjpeg",
        "d.jpg_large",
        "e",
        "f.PNG",
        "g.v1.5",
        "h.Tif",
        "i.image",
    ];
    for name in pictures {
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        let stem = if name == "g.v1.5" { "g.v1.5" } else { stem };
        place.write(name, png()).write(&format!("{stem}.TXT"), name);
    }
    let (scanned, notes, problems) = told(&place.folder());
    assert_eq!(captions(&scanned.expect("scans")), pictures);
    assert!(
        notes.is_empty() && problems.is_empty(),
        "{notes:?} {problems:?}"
    );
}

#[test]
fn every_file_that_is_not_used_is_told_once_in_few_lines() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .write("a.txt", "x")
        .picture("a-masklabel.png", 2);
    for name in ["b.avif", "c.HEIC", "d.jxl", "e.mp4"] {
        place.write(name, "...");
    }
    place
        .write("f", b"\0\0\0\x20ftypavif")
        .write("orphan.txt", "x")
        .write("a_sdxl.npz", "x");
    place
        .write("a.png.bak", png())
        .write("notes.md", "x")
        .write("g.png~", png());
    place
        .write("Thumbs.db", "x")
        .write(".DS_Store", "x")
        .write(".secret.png", png());
    for n in 0..1000 {
        place.write(&format!("lost{n}.txt"), "x");
    }
    // A mask never gets the caption of pictures without one.
    let (scanned, notes, problems) = told(&place.folder_with(|set| {
        set.default_caption = Some("a thing".to_owned());
    }));
    assert_eq!(names(&scanned.expect("scans")), ["a.png"]);
    assert_eq!(
        (notes.len(), problems.len()),
        (1, 1),
        "{notes:?} {problems:?}"
    );
    assert!(problems[0].ends_with(
        "not read: 5 of kinds that cannot be decoded here (save them as PNG, JPEG or WebP): b.avif, c.HEIC, d.jxl, e.mp4, f"
    ), "{problems:?}");
    for part in [
        "2 backup copies or unfinished downloads: a.png.bak, g.png~",
        "1 mask of other trainers: a-masklabel.png",
        "1001 captions without a picture: lost0.txt, lost1.txt, lost2.txt, lost3.txt, lost4.txt, ...",
        "1 cache of other trainers: a_sdxl.npz",
        "1 hidden: .secret.png",
        "1 other file: notes.md",
        "2 files of the system",
    ] {
        assert!(notes[0].contains(part), "{part}: {notes:?}");
    }
}

#[test]
fn a_folder_of_masks_beside_pictures_is_no_data() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .write("a.txt", "x")
        .picture("masks/a.png", 2)
        .picture("mask/b.png", 3);
    place.write("mask/b.txt", "a face with a mask");
    let (scanned, notes, _) = told(&place.folder_with(|set| {
        set.recursive = true;
        set.allow_empty_captions = true;
    }));
    assert_eq!(names(&scanned.expect("scans")), ["a.png", "b.png"]);
    assert!(
        notes[0].contains("1 mask of other trainers: masks/a.png"),
        "{notes:?}"
    );
}

#[test]
fn names_that_mean_something_to_other_trainers_are_told_of() {
    let place = Place::new();
    for folder in ["10_sks dog", "1_dog", "2_"] {
        place
            .picture(&format!("{folder}/a.png"), 1)
            .write(&format!("{folder}/a.txt"), "x");
    }
    let (scanned, notes, _) = told(&place.folder_with(|set| set.recursive = true));
    assert_eq!(scanned.expect("scans").items.len(), 3);
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].ends_with(
            "a [[dataset]] for each of these folders, with `repeats = 10` for 10_sks dog"
        ),
        "{notes:?}"
    );
    // The folder itself, unless its repeats are written.
    let inner = |repeats| {
        let mut inner = folder(place.path().join("10_sks dog"));
        inner.set.repeats = repeats;
        told(&inner).1
    };
    assert!(inner(1)[0].contains("repeats = 10"));
    assert!(inner(3).is_empty());
    // Two pictures of one name.
    let shared = Place::new();
    shared
        .picture("a.png", 1)
        .picture("a.bmp", 2)
        .write("a.txt", "shared");
    let (_, notes, _) = told(&shared.folder());
    assert!(
        notes[0].contains("1 caption file of several pictures"),
        "{notes:?}"
    );
    assert!(notes[0].contains("a.bmp, a.png"), "{notes:?}");
}

#[test]
fn a_table_of_captions_is_read_as_a_list() {
    let place = Place::new();
    place.picture("a.png", 1).picture("b, c.png", 2);
    let table =
        "\u{feff}id,file_name,text\r\n1,a.png,\"a cat, \"\"sitting\"\"\"\r\n2,\"b, c.png\",two\r\n";
    place.write("metadata.csv", table);
    assert_eq!(
        captions(&place.scan().expect("scans")),
        ["a cat, \"sitting\"", "two"]
    );
    place.write("a.txt", "another");
    refused(place.scan(), &["metadata.csv", "a.txt", "remove one"]);
    std::fs::remove_file(place.path().join("a.txt")).expect("removes");
    for (table, part) in [
        ("file_name,title\na.png,x\n", "line 1: no column `text`"),
        ("name,text\na.png,x\n", "line 1: no column `file_name`"),
        ("file_name,text\na.png,x\nb.png,y,z\n", "line 3: "),
        (
            "file_name,text\na.png,x\n../b.png,y\n",
            "line 3: `file_name` is `../b.png`",
        ),
        (
            "file_name,text\nc.png,x\n",
            "`c.png` is not a picture in the folder",
        ),
        (
            "file_name,text,text\na.png,x,y\n",
            "line 1: the column `text` is there twice",
        ),
        (
            "file_name,text, file_name\na.png,x,b.png\n",
            "line 1: the column `file_name` is there twice",
        ),
        (
            "file_name,text,caption\na.png,x,\nb.png, ,a cat\n",
            "line 3: `text` is empty, and `caption` is not",
        ),
        (
            "id;file_name;text\n1;a.png;x\n",
            "line 1: no column `file_name`: the columns are separated by `;`, expected `,`",
        ),
        (
            "\"file_name\"\t\"text\"\na.png\tx\n",
            "line 1: no column `file_name`: the columns are separated by a tab, expected `,`",
        ),
    ] {
        place.write("metadata.csv", table);
        refused(place.scan(), &["metadata.csv", part]);
    }
    place.write("metadata.csv", "file_name,text\na.png,x\n");
    place.write(
        "metadata.jsonl",
        "{\"file_name\": \"a.png\", \"text\": \"y\"}",
    );
    refused(
        place.scan(),
        &["`a.png` has a caption in metadata.csv as well"],
    );
}

/// The `csv` crate closes an open quote at the file's end, and the captions of all rows behind it are empty, or one.
#[test]
fn a_table_with_a_quote_too_few_or_too_many_is_refused_where_it_opens() {
    let place = Place::new();
    place.picture("a.png", 1).picture("b.png", 2);
    let lenient = place.folder_with(|set| set.allow_empty_captions = true);
    let never = "a quote that opens here is never closed";
    let behind = "a quote that opens here has text behind its end";
    for (rows, line, problem) in [
        ("a.png,\"a tall red house\nb.png,a cat\n", 2, never),
        ("a.png,x\nb.png,\"a cat", 3, never),
        ("a.png,x\r\nb.png,\"a \"\"cat\"\"", 3, never),
        ("a.png,\"a tall house\nb.png,\"a cat\"\n", 2, behind),
        ("a.png,x\nb.png,\"a \"small\" cat\"\n", 3, behind),
    ] {
        place.write("metadata.csv", format!("file_name,text\n{rows}"));
        refused(
            told(&lenient).0,
            &["metadata.csv", &format!("line {line}: {problem}")],
        );
    }
    let sound = "file_name,text\na.png,\"two\nlines, \"\"and\"\" more\" \nb.png,5\" tall\n";
    place.write("metadata.csv", sound);
    assert_eq!(
        captions(&told(&lenient).0.expect("scans")),
        ["two\nlines, \"and\" more", "5\" tall"]
    );
}

#[test]
fn a_list_of_a_folder_inside_names_files_of_that_folder() {
    let place = Place::new();
    place
        .picture("in/a.png", 1)
        .write("in/metadata.csv", "file_name,text\na.png,inner\n");
    let deep = place.folder_with(|set| set.recursive = true);
    assert_eq!(captions(&told(&deep).0.expect("scans")), ["inner"]);
}

#[test]
fn a_picture_that_cannot_be_read_costs_one_line_where_pictures_are_done_one_by_one() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .write("a.txt", "x")
        .write("b.png", "nonsense")
        .write("b.txt", "x");
    let folders = [place.folder()];
    let (dataset, broken) = Dataset::scan_usable(&folders, &Silent).expect("scans");
    assert_eq!(
        (names(&dataset), broken.len()),
        (vec!["a.png".to_owned()], 1)
    );
    refused(place.scan(), &["b.png", "not a picture"]);
    std::fs::remove_file(place.path().join("a.png")).expect("removes");
    assert!(Dataset::scan_usable(&folders, &Silent).is_err());
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;

    use super::*;

    #[track_caller]
    fn link(to: impl AsRef<Path>, at: &Place, name: &str) {
        symlink(to, at.path().join(name)).expect("links");
    }

    #[test]
    fn links_out_of_the_folder_are_followed_where_that_is_said() {
        let (place, other) = (Place::new(), Place::new());
        place.picture("a.png", 1).write("a.txt", "own");
        other.picture("deep/x.png", 2).write("deep/x.txt", "theirs");
        other.picture("y.png", 3).write("y.txt", "their y");
        link(other.path().join("deep"), &place, "more");
        link(other.path().join("y.png"), &place, "y.png");
        link("/nowhere/lost.jpg", &place, "lost.jpg");
        place.write("lost.txt", "lost");
        let recursive =
            |follow| place.folder_with(|set| (set.recursive, set.follow_links) = (true, follow));
        let (scanned, notes, problems) = told(&recursive(false));
        assert_eq!(captions(&scanned.expect("scans")), ["own"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("not read: 1 link to nothing: lost.jpg"),
            "{problems:?}"
        );
        assert!(problems[1].contains(
            "2 links out of the folder (`follow_links = true` follows links): more, y.png"
        ));
        assert!(
            notes[0].contains("1 caption without a picture: lost.txt"),
            "{notes:?}"
        );
        // A picture's link is followed, its caption's as well.
        link(other.path().join("y.txt"), &place, "y.txt");
        let (scanned, _, problems) = told(&recursive(true));
        assert_eq!(
            captions(&scanned.expect("scans")),
            ["own", "theirs", "their y"]
        );
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[test]
    fn no_foreign_text_comes_in_by_a_caption_that_is_a_link() {
        for (name, target) in [
            ("a.txt", "secret"),
            ("metadata.jsonl", "secret"),
            ("a.txt", "nothing"),
        ] {
            let (place, other) = (Place::new(), Place::new());
            other.write(
                "secret",
                "{\"file_name\": \"a.png\", \"text\": \"a secret\"}",
            );
            place.picture("a.png", 1);
            link(other.path().join(target), &place, name);
            let folder = place.folder_with(|set| set.default_caption = Some("x".to_owned()));
            refused(told(&folder).0, &[name, "a link"]);
        }
    }

    #[test]
    fn links_inside_are_followed_and_never_in_circles() {
        let place = Place::new();
        place
            .picture("in/a.png", 1)
            .write("in/a.txt", "one")
            .write("b.txt", "two");
        link("in/a.png", &place, "b.png");
        link(".", &place, "in/self");
        link("..", &place, "in/up");
        link("in", &place, "again");
        link("loop", &place, "loop");
        for follow in [false, true] {
            let folder =
                place.folder_with(|set| (set.recursive, set.follow_links) = (true, follow));
            let (scanned, _, problems) = told(&folder);
            // `..` of a folder inside is the data set's own folder.
            let expected = ["two", "one"];
            assert_eq!(captions(&scanned.expect("scans")), expected);
            assert!(
                problems.len() == 1 && problems[0].contains("loop"),
                "{problems:?}"
            );
        }
        // The folder itself may be a link.
        let other = Place::new();
        link(place.path(), &other, "data");
        let mut linked = folder(other.path().join("data"));
        linked.set.recursive = true;
        assert_eq!(captions(&told(&linked).0.expect("scans")), ["two", "one"]);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let place = Place::new();
        place.picture("a.png", 1).write("a.txt", "x");
        link("/dev/zero", &place, "b.png");
        let socket = std::os::unix::net::UnixListener::bind(place.path().join("c.png"));
        let folder = place.folder_with(|set| set.follow_links = true);
        let (scanned, _, problems) = told(&folder);
        assert_eq!(scanned.expect("scans").items.len(), 1);
        assert!(
            problems[0].contains("2 neither files nor folders: b.png, c.png"),
            "{problems:?}"
        );
        drop(socket);
    }
}
