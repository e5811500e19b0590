//! `plumb inspect report`: the page, in a browser and as a file.

use serde_json::json;

use crate::browser::{chromium, look, look_at_phone};
use crate::world::World;

const HOSTILE: &str = "</script><script>document.title='taken'</script> \"quoted\" & 'apostrophe' \u{202e}turned\u{202c} <!--";

/// A world with captions of every kind, encoded under its own recipe, of which one deviation is named.
fn world() -> World {
    let world = World::new();
    world.write(
        "pictures/p1.txt",
        &"a long caption of many words ".repeat(180),
    );
    world.write("pictures/p2.txt", HOSTILE);
    world.picture("pictures/p3.png", 64, 64, [9, 9, 9]);
    world.write(
        "pictures/p3.txt",
        "\u{5d7}\u{5ea}\u{5d5}\u{5dc} \u{1f469}\u{200d}\u{1f680} \u{732b}",
    );
    world.write(
        "exp.toml",
        &(World::experiment()
            + "\n[recipe.deviate]\nt5.tokens.min_tokens = 60\nt5.tokens.max_tokens = 60\n"),
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world
}

/// Acts as a person does, and tells what the page became.
const ACTS: &str = r##"
const at = (id) => document.getElementById(id), key = (e, k) => e.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true, cancelable: true }));
const selected = () => [...document.querySelectorAll('[aria-selected="true"]')].map((o) => Number(o.id.slice(1)));
const found = { title: document.title, options: document.querySelectorAll("#options li").length, first: selected() };
key(at("options"), "ArrowDown"); found.down = selected(); key(at("options"), "End"); found.end = selected(); key(at("options"), "Home");
document.querySelectorAll("#options li")[2].click(); found.clicked = selected();
found.hostile = at("caption").textContent; found.picture = !at("picture").hidden && at("picture").src.startsWith("data:image/jpeg");
found.strips = document.querySelectorAll("#strips .strip").length;
const token = document.querySelector("#strips .strip li"); token.dispatchEvent(new MouseEvent("mouseenter")); found.token = at("token").textContent;
token.focus(); key(token, "ArrowRight"); found.second = document.activeElement.textContent;
at("search").value = "LONG words"; at("search").dispatchEvent(new Event("input")); found.searched = [at("found").textContent, selected()];
found.lost = [...document.querySelectorAll("#strips .lost")].length;
const cosine = document.querySelector("input[value=cosine]"); found.cosine = !!cosine;
if (cosine) { cosine.click(); found.colored = [...document.querySelectorAll("#strips .strip li")].filter((t) => t.style.backgroundColor).length; }
found.maps = [...document.querySelectorAll(".map svg")].map((m) => m.querySelectorAll("circle").length);
const map = document.querySelector(".map svg");
if (map) { key(map, "ArrowRight"); key(map, "ArrowLeft"); found.card = at("card-text").textContent.length > 0; map.querySelector("circle").dispatchEvent(new MouseEvent("click", { bubbles: true })); found.opened = selected().length; }
const link = document.querySelector("[data-open]"); if (link) { link.click(); found.linked = selected()[0] === Number(link.dataset.open); }
found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.width = document.documentElement.clientWidth;
found.paper = getComputedStyle(document.body).backgroundColor;
found.unnamed = [...document.querySelectorAll("img")].filter((i) => !i.hidden && !i.alt).length;
found.headings = [...document.querySelectorAll("h1,h2")].map((h) => h.textContent);
found.requests = performance.getEntriesByType("resource").map((r) => r.name).filter((n) => !n.startsWith("data:"));
return found;
"##;

#[test]
fn a_person_can_search_click_and_key_through_the_page_in_a_browser() {
    let Some(browser) = chromium() else {
        return;
    };
    let world = world();
    let report = [
        "inspect",
        "report",
        "exp.toml",
        "--html",
        "page.html",
        "--encode",
    ];
    world.run(&report).expect(0);
    let page = world.path("page.html");
    let seen = look(&browser, &page, (1280, false), ACTS);
    let found = &seen.found;
    assert_eq!(seen.console, Vec::<String>::new(), "{found}");
    assert_eq!(found["failed"], json!(null), "{found}");
    assert!(
        found["title"]
            .as_str()
            .is_some_and(|t| t.starts_with("exp.toml")),
        "{found}"
    );
    // Four pictures' captions, the prompt and the empty one.
    assert_eq!(
        (&found["options"], &found["maps"]),
        (&json!(6), &json!([6, 6, 6]))
    );
    let walk = ["first", "down", "end", "clicked"].map(|step| found[step].clone());
    assert_eq!(walk, [json!([0]), json!([1]), json!([5]), json!([2])]);
    let hostile = found["hostile"].as_str().expect("a text");
    assert!(
        hostile.starts_with("</script><script>") && hostile.contains(r"\u{202e}turned"),
        "{hostile}"
    );
    assert_eq!(
        (&found["strips"], &found["picture"]),
        (&json!(3), &json!(true))
    );
    let token = found["token"].as_str().expect("a text");
    assert!(
        token.contains("clip_l, token 0: id 812, piece <|startoftext|>, norm "),
        "{token}"
    );
    assert_eq!(found["searched"], json!(["1 of 6 captions", [1]]));
    assert_eq!(found["lost"], 3, "{found}");
    assert!(found["colored"].as_u64().is_some_and(|n| n > 10), "{found}");
    for truth in ["card", "linked", "cosine"] {
        assert_eq!(found[truth], true, "{truth}: {found}");
    }
    assert_eq!(
        (&found["unnamed"], &found["wide"], &found["requests"]),
        (&json!(0), &json!(0), &json!([]))
    );
    let seen = look_at_phone(&browser, &page, 360);
    let light = found["paper"].clone();
    assert_eq!(seen.found["wide"], 0, "{}", seen.found);
    assert_ne!(seen.found["paper"], light);
}

#[test]
fn the_page_tells_what_differs_and_what_would_encode_the_other_recipe() {
    let world = world();
    let report = ["inspect", "report", "exp.toml", "--html", "page.html"];
    world.run(&report).expect(0).says("6 captions");
    let page = String::from_utf8(world.read("page.html")).expect("UTF-8");
    for part in [
        "2 of ",
        "t5.tokens.max_tokens",
        "The same entries: both recipes ask for the very same",
        "--against reference --encode</code> encodes it",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        !page.contains("</script><script>document"),
        "a caption is a script"
    );
    let report = [&report[..], &["--encode", "--json"]].concat();
    let told = world.run(&report).expect(0).json();
    assert_eq!((&told["captions"], &told["shown"]), (&json!(6), &json!(6)));
    let page = String::from_utf8(world.read("page.html")).expect("UTF-8");
    assert!(page.contains("Mean cosine by place in the caption"));
    // Nothing is asked of a network, wherever a page could.
    for request in ["http://", "https://", "src=\"/", "@import", "url("] {
        assert!(!page.contains(request), "{request}");
    }
}

#[test]
fn hard_cases_get_a_page_or_a_line() {
    let world = World::new();
    let report = |what: &str| world.run(&["inspect", "report", what, "--html", "page.html"]);
    let _ = report("exp.toml")
        .expect(4)
        .says("to mend it: plumb encode exp.toml");
    let _ = report("absent.toml").expect(2);
    // No caption at all: a store that was just made.
    world.run(&["encode", "exp.toml"]).expect(0);
    std::fs::create_dir(world.path("empty")).expect("a folder");
    std::fs::copy(
        world.path("store/store.json"),
        world.path("empty/store.json"),
    )
    .expect("copied");
    let _ = report("empty").expect(0).says("0 captions");
    let _ = report("store").expect(0).says("5 captions");
    let page = String::from_utf8(world.read("page.html")).expect("UTF-8");
    assert!(page.contains("A store by itself"));
    let _ = world
        .run(&[
            "inspect",
            "report",
            "store",
            "--html",
            "page.html",
            "--against",
            "kohya",
        ])
        .expect(2);
    let _ = world
        .run(&[
            "inspect",
            "report",
            "exp.toml",
            "--html",
            "page.html",
            "--against",
            "nobody",
        ])
        .expect(2)
        .says("nobody");
    world
        .run(&["inspect", "report", "exp.toml", "--html", "pictures"])
        .expect(2)
        .says("--html: cannot write pictures: it is a folder; name a file in it");
    world
        .run(&[
            "inspect",
            "report",
            "exp.toml",
            "--html",
            "exp.toml/page.html",
        ])
        .expect(2)
        .says("error: --html: cannot write exp.toml/page.html: ");
    // One caption, without a picture.
    let one = World::experiment().replace("path = \"store\"", "path = \"one\"");
    world.write("one.toml", &one);
    world.write("one.txt", "a caption alone\n");
    world
        .run(&["encode", "one.toml", "--captions", "one.txt"])
        .expect(0);
    let _ = report("one").expect(0).says("1 caption");
    // Some of an Experiment's captions.
    let _ = report("one.toml").expect(4);
    world.write("one.txt", "a blue square\n");
    world
        .run(&["encode", "one.toml", "--captions", "one.txt"])
        .expect(0);
    let _ = report("one.toml")
        .expect(3)
        .says("4 of 5 captions are not in the store");
    // A picture that is gone is told; its caption is no longer there. Damage is told and ends nothing.
    std::fs::write(world.path("pictures/p0.png"), b"not a picture").expect("written");
    for pack in crate::store_util::files(&world.path("store"), ".safetensors") {
        let mut bytes = std::fs::read(&pack).expect("a pack");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&pack, bytes).expect("written");
    }
    let _ = report("exp.toml")
        .expect(3)
        .says("damaged in the store")
        .says("p0.png");
}

/// The folder of a training keeps its curves when the Experiment changes.
#[test]
fn a_training_under_another_recipe_is_told_beside_its_curves() {
    let world = World::new();
    let page = || {
        world.run(&["encode", "exp.toml"]).expect(0);
        let report = ["inspect", "report", "exp.toml", "--html", "page.html"];
        world.run(&report).expect(0);
        std::fs::read_to_string(world.path("page.html")).expect("a page")
    };
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let same = page();
    assert!(same.contains("Training") && !same.contains("another recipe</b>"));
    let experiment = World::experiment().replace("\"reference\"", "\"kohya\"");
    world.write("exp.toml", &experiment);
    assert!(page().contains("trained under <b>another recipe</b>"));
}

/// What the page shows of pairs, after the second caption was chosen.
const PAIRS: &str = r##"
const at = (id) => document.getElementById(id), files = [];
const number = (src) => { if (!files.includes(src)) files.push(src); return files.indexOf(src); };
const shown = (image) => image.hidden || !image.src.startsWith("data:image/jpeg") || !image.naturalWidth ? null : number(image.src);
const pair = (place) => ["reference", "picture"].map((name) => shown(at(place + name)));
const found = { beside: [...document.querySelectorAll(".beside li")].map((li) => [...li.querySelectorAll("img")].map(shown)) };
found.texts = [...document.querySelectorAll(".beside li")].map((li) => li.textContent);
const choose = (n) => { document.querySelectorAll("#options li")[n].click(); return [at("about").textContent, pair(""), pair("card-"), !at("picture").previousElementSibling.hidden]; };
found.chosen = [0, 1, 2, 3].map(choose);
found.unnamed = [...document.querySelectorAll("img")].filter((i) => !i.hidden && !i.alt).length;
found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
return found;
"##;

#[test]
fn a_reference_stands_beside_its_picture() {
    let world = crate::kontext::world();
    world.picture("references/p0.jpg", 64, 160, [90, 10, 10]);
    let both = "a red circle number 1";
    world.write("pictures/p2.txt", both);
    world.edit(
        "[adapter]",
        "[[dataset]]\npath = \"plain\"\nwithout_references = true\nresolution = 64\nbucket_step = 16\n[adapter]",
    );
    world.write("plain/a.txt", both);
    world.picture("plain/a.png", 64, 64, [9, 9, 9]);
    world.edit(
        "prompts = [\"a blue square\"]",
        "prompts = [\"a blue square\"]\nreferences = [\"references/p2.jpg\"]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    let report = ["inspect", "report", "exp.toml", "--html", "page.html"];
    world.run(&report).expect(0);
    let page = String::from_utf8(world.read("page.html")).expect("UTF-8");
    let said = "3 pictures beside a reference, of which there are 3. Without one, and trained on as text to picture: 1.";
    assert!(page.contains(said));
    let Some(browser) = chromium() else {
        return;
    };
    let page = world.path("page.html");
    let seen = look(&browser, &page, (1280, false), PAIRS);
    let found = &seen.found;
    assert_eq!(seen.console, Vec::<String>::new(), "{found}");
    assert_eq!(found["beside"], json!([[0, 1], [2, 3], [4, 5]]), "{found}");
    let [first, second, nothing] = [json!([0, 1]), json!([2, 3]), json!([null, null])];
    let text = |n: usize| found["texts"][n].as_str().unwrap_or_default();
    let sizes = "p0.jpg 64 \u{d7} 160, seen as 64 \u{d7} 64";
    assert!(text(0).contains(sizes), "{found}");
    let stretched = [0, 1, 2].map(|n| text(n).contains("stretched by more than a tenth"));
    assert_eq!(stretched, [true, false, false], "{found}");
    // A caption of one pair, of several pictures, what stands for no caption, a prompt with a reference.
    let of_prompt = json!([4, null]);
    let chosen = json!([
        ["1 picture beside a reference", first, first, true],
        [
            "3 pictures, 2 of them beside a reference",
            second,
            second,
            true
        ],
        [
            "prompt, or what stands for no caption",
            nothing,
            nothing,
            false
        ],
        [
            "prompt, or what stands for no caption",
            of_prompt,
            of_prompt,
            false
        ],
    ]);
    for n in 0..4 {
        assert_eq!(found["chosen"][n], chosen[n], "{n}: {found}");
    }
    assert_eq!((&found["unnamed"], &found["wide"]), (&json!(0), &json!(0)));
    assert_eq!(look_at_phone(&browser, &page, 360).found["wide"], 0);
}
