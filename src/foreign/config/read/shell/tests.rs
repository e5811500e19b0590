use super::{Budget, Value, read};

fn words(text: &str) -> Vec<Vec<String>> {
    let script = read(text, &mut Budget::default()).expect("a script");
    let texts = |words: &Vec<super::Word>| words.iter().map(|w| w.text.clone()).collect();
    script.commands.iter().map(texts).collect()
}

fn notes(text: &str) -> Vec<String> {
    read(text, &mut Budget::default()).expect("a script").notes
}

#[test]
fn a_command_goes_over_lines_and_its_variables_are_known() {
    let text = "#!/bin/bash\nexport MODEL=\"a/b\"\nN='x y'\naccelerate launch t.py \\\n  --m $MODEL/${N} \\\n  --flag # why\nnext\n";
    assert_eq!(
        words(text),
        [
            vec![
                "accelerate",
                "launch",
                "t.py",
                "--m",
                "a/b/x",
                "y",
                "--flag"
            ],
            vec!["next"]
        ]
    );
}

#[test]
fn windows_lines_and_unknown_variables_stay() {
    let text = "python t.py ^\r\n --d C:\\data\\x --o \"$HOME/out\"\r\n";
    assert_eq!(
        words(text),
        [["python", "t.py", "--d", "C:\\data\\x", "--o", "$HOME/out"]]
    );
}

#[test]
fn an_open_quote_and_a_word_that_grows_are_refused() {
    let refusal = |text: &str| read(text, &mut Budget::default()).expect_err("refused");
    assert!(refusal("a 'b").contains("line 1: a quote"));
    let mut text = "A=xxxxxxxxxxxxxxxx\n".to_owned();
    for _ in 0..40 {
        text += "A=$A$A\n";
    }
    assert!(refusal(&text).contains("a word of more than"));
    let mut text = "A=(xxxxxxxxxxxxxxxx y)\n".to_owned();
    for _ in 0..40 {
        text += "A=(\"${A[@]}${A[@]}\")\n";
    }
    assert!(refusal(&text).contains("more than"));
    assert!(refusal("A=(a b").contains("line 1: a bracket"));
}

#[test]
fn variables_are_appended_to_split_and_lists() {
    for (text, expected) in [
        (
            "A=\"--a 1\"\nA+=\" --b 2\"\nt.py x $A y",
            "t.py|x|--a|1|--b|2|y",
        ),
        ("A=\"--a 1\"\nt.py \"$A\"x", "t.py|--a 1x"),
        ("A=\"x y\"\nB=$A\nt.py \"$B\"", "t.py|x y"),
        ("A=\nt.py $A \"$A\" z", "t.py||z"),
        (
            "A=(--a 1 # why\n  --b \"x y\"\n)\nt.py \"${A[@]}\" ${A[*]}",
            "t.py|--a|1|--b|x y|--a|1|--b|x y",
        ),
        ("A=(--a)\nA+=(--b 2)\nt.py \"${A[@]}\"", "t.py|--a|--b|2"),
        ("t.py --a ${X:-0.07} ${Y-\"b\"}", "t.py|--a|0.07|b"),
        ("X=1\nt.py ${X:-2}", "t.py|1"),
        (
            "t.py n_$(date +%s) $((2 + 3)) ${X%.*} $1",
            "t.py|n_$(date +%s)|$((2 + 3))|${X%.*}|$1",
        ),
        ("set -e\nexport -p A=1\nt.py $A", "set|-e||t.py|1"),
    ] {
        let found: Vec<String> = words(text).iter().map(|words| words.join("|")).collect();
        assert_eq!(found.join("||"), expected, "{text}");
    }
    let said = "`${X:-0.07}` is taken as it is where the variable is not set";
    assert_eq!(notes("t.py ${X:-0.07} ${X:-0.07}"), [said]);
}

#[test]
fn what_a_condition_sets_is_not_known() {
    for text in [
        "L=1\nif [ \"$1\" = hi ]; then\n  L=5\nfi\nt.py $L",
        "L=1; [ -z $x ] && L=5\nt.py $L",
        "L=1\ncase $x in\n a) L=5 ;;\n *) L=6;;\nesac\nt.py $L",
        "for L in 1 2; do\nt.py $L\ndone",
        "f() {\n L=1\n}\nt.py $L",
        "L=1\nif true; then L+=5; fi\nt.py $L",
        "L=(1)\nif true; then L+=5; fi\nt.py $L",
        "L=(1)\nif true; then L+=(5); fi\nt.py $L",
    ] {
        assert_eq!(
            words(text).last().expect("a command"),
            &["t.py", "$L"],
            "{text}"
        );
        let notes = notes(text);
        assert!(notes[0].starts_with("`$L` is set in line "), "{notes:?}");
    }
    // What is set for all that comes behind is known again, and a loop is no command.
    let text = "if a; then L=5; fi\nL=2\nfor x in 1 2\ndo\n t.py $L\ndone";
    assert_eq!(words(text), [vec!["a"], vec!["t.py", "2"]]);
    assert!(notes(text).is_empty());
}

#[test]
fn a_dollar_sign_that_is_none_of_a_variable_stands_twice_beside_one() {
    for (text, expected) in [
        ("t.py '/a/$b'", Value::Text("/a/$b".to_owned())),
        ("t.py /a/\\$b", Value::Text("/a/$b".to_owned())),
        ("t.py \"$H\"'/$b'", Value::Open("$H/$$b".to_owned())),
        ("A='$b'\nt.py $A/$H", Value::Open("$$b/$H".to_owned())),
    ] {
        let script = read(text, &mut Budget::default()).expect("a script");
        let word = script.commands[0].last().expect("a word").clone();
        assert_eq!(word.value(0), expected, "{text}");
    }
}
