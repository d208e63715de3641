package where_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/where"
)

// row is properties as JSON, the same in all scopes; $time is a datetime.
type row map[string]string

func (r row) Property(_ where.Scope, name string) where.Value {
	if name == "$time" {
		return where.Time(1_767_225_600_000) // 2026-01-01
	}
	return where.JSON(jsontext.Value(r[name]))
}

var sample = row{
	"plan": `"pro"`, "empty": `""`, "n": `42`, "f": `2.5`, "neg": `-7`, "zero": `0`, "yes": `true`, "no": `false`, "null": `null`,
	"text yes": `"true"`, "text no": `"false"`, "text n": `"42"`, "tags": `["a","b",3]`, "none": `[]`, "obj": `{"a":1}`,
	"seen": `"2026-03-31T12:00:00"`, "zoned": `"2026-03-31T14:00:00+02:00"`, "day": `"2026-03-31"`, "unix": `1774958400`, `q"x`: `"quoted"`, "e": `"a\n\u00e9\"\\"`,
}

func match(t *testing.T, src string) bool {
	t.Helper()
	e, err := where.Parse(src, where.Properties|where.Event|where.User)
	if err != nil {
		t.Fatalf("%s: %v", src, err)
	}
	return e.Match(sample)
}

func TestExpressionsSelectAsDocumented(t *testing.T) {
	for src, want := range map[string]bool{
		// Equality.
		`user["plan"] == "pro"`: true, `properties["plan"] == 'pro'`: true, `event["plan"] == "Pro"`: false,
		`properties["n"] == 42`: true, `properties["n"] == "42"`: false, `properties["n"] != "42"`: true, `properties["yes"] == true`: true,
		`properties["yes"] == "true"`: false, `properties["absent"] == "x"`: false, `properties["absent"] != "x"`: true,
		`properties["tags"] == ["a","b",3]`: true, `properties["tags"] == ["a","b"]`: false, `properties["tags"] == "a"`: false,
		`properties["obj"] == properties["obj"]`: true, `properties["absent"] == properties["gone"]`: true, `properties["null"] == properties["absent"]`: false,
		// Order.
		`properties["n"] > 41.5`: true, `properties["n"] >= 42`: true, `properties["n"] < 42`: false, `properties["n"] <= 42`: true,
		`properties["n"] > "1"`: false, `properties["n"] < "1"`: false, `not properties["n"] > "1"`: true, `properties["plan"] < "q"`: true,
		`properties["yes"] > false`: false, `properties["absent"] > 0`: false, `properties["neg"] < -6`: true,
		// in.
		`"r" in properties["plan"]`: true, `"x" in properties["plan"]`: false, `"a" in properties["tags"]`: true, `3 in properties["tags"]`: true,
		`"3" in properties["tags"]`: false, `properties["n"] in [1, 42]`: true, `properties["n"] in []`: false, `"a" in properties["none"]`: false,
		`4 in properties["n"]`: false, `not "x" in properties["plan"]`: true, `"x" in properties["absent"]`: false, `not "x" in properties["absent"]`: true,
		// Logic.
		`properties["yes"] and not properties["no"]`: true, `properties["no"] or properties["yes"]`: true, `properties["no"] and properties["yes"] or properties["yes"]`: true,
		`properties["yes"] or properties["yes"] and properties["no"]`: true, `(properties["yes"] or properties["yes"]) and properties["no"]`: false,
		`properties["plan"] and true`: false, `properties["plan"] or true`: true, `properties["absent"] or true`: true, `not not properties["yes"]`: true,
		`not properties["plan"]`: false, `not properties["absent"]`: true, `properties["plan"]`: false, `true`: true, `false`: false, `1`: false,
		// defined.
		`defined(properties["plan"])`: true, `defined (user["absent"])`: false, `not defined(user["absent"])`: true, `defined(properties["null"])`: false,
		`defined(properties["empty"])`: true, `(defined (properties["zero"]))`: true,
		// Casts.
		`boolean(properties["text yes"]) == true`: true, `boolean(properties["text no"])`: false, `boolean(properties["empty"])`: false, `boolean(properties["zero"])`: false,
		`boolean(properties["n"])`: true, `boolean(properties["absent"]) == false`: true, `boolean(properties["null"]) == false`: true, `boolean(properties["tags"])`: true,
		`number(properties["text n"]) == 42`: true, `number(properties["plan"]) == 0`: false, `defined(number(properties["plan"]))`: false, `number(properties["yes"]) == 1`: true,
		`defined(number(properties["null"]))`: false, `number("0x10") == 16`: false, `number("inf") > 0`: false, `number(" 7 ") == 7`: true,
		`string(properties["n"]) == "42"`: true, `string(properties["f"]) == "2.5"`: true, `string(properties["yes"]) == "true"`: true, `defined(string(properties["null"]))`: false,
		`string(1e21) == "1000000000000000000000"`: true,
		// Times.
		`event["$time"] >= datetime("2026-01-01T00:00:00")`: true, `event["$time"] > datetime("2026-01-01")`: false, `event["$time"] == datetime(1767225600)`: true,
		`properties["seen"] == datetime("2026-03-31T12:00:00")`: true, `properties["zoned"] == datetime("2026-03-31T12:00:00Z")`: true, `properties["day"] < datetime("2026-03-31T00:00:01")`: true,
		`properties["unix"] == datetime("2026-03-31T12:00:00.000")`: true, `properties["plan"] < datetime("2026-01-01")`: false, `properties["plan"] == datetime("2026-01-01")`: false,
		`datetime(properties["seen"]) > datetime(properties["absent"])`: false, `number(event["$time"]) == 1767225600`: true, `string(event["$time"]) == "2026-01-01T00:00:00"`: true,
		`datetime("2026-01-01") in [properties["seen"], event["$time"]]`: true,
		// Arithmetic.
		`properties["n"] + 1 == 43`: true, `"a" + "b" == "ab"`: true, `defined("a" + 1)`: false, `properties["n"] - 2 * 20 == 2`: true, `(properties["n"] - 2) * 20 == 800`: true,
		`properties["n"] / 4 == 10.5`: true, `defined(1 / 0)`: false, `defined(1 % 0)`: false, `-7 % 3 == -1`: true, `--1 == 1`: true, `defined(-"a")`: false,
		`floor(2.7) == 2 and ceil(2.1) == 3 and round(2.5) == 3`: true, `defined(floor("a"))`: false, `.5 + 1e1 == 10.5`: true,
		// Texts.
		`properties["q\"x"] == "quoted"`: true, `properties['q"x'] == "quoted"`: true, `properties["e"] == "a\n\u00e9\"\\"`: true, `"\ud83d\ude00" == "😀"`: true, `'\'' == "'"`: true,
		" properties [ \"plan\" ]\n==\t\"pro\" ": true,
	} {
		if got := match(t, src); got != want {
			t.Errorf("%s = %v, want %v", src, got, want)
		}
	}
}

func TestAnErrorNamesTheCharacterAndRepeatsNothing(t *testing.T) {
	for src, want := range map[string]struct {
		at  int
		say string
	}{
		"":                                       {1, "want a value"},
		`user["a"] = "x"`:                        {11, "want =="},
		`user["a"] == `:                          {14, "want a value"},
		`user["é"] == secret@example.org`:        {14, "want a value"},
		`user["a"] == "x" "y"`:                   {18, "operator or the end"},
		`user["a"`:                               {9, "want ]"},
		`user.a == 1`:                            {5, "want a number"},
		`user[1]`:                                {6, "name of a property"},
		`user == 1`:                              {6, "want ["},
		`(user["a"] == 1`:                        {16, "want )"},
		`"abc`:                                   {1, "no closing quote"},
		`"a\`:                                    {1, "no closing quote"},
		`"a\q"`:                                  {3, "escapes"},
		`"\u12"`:                                 {2, "hexadecimal"},
		`"\ud83d"`:                               {2, "both halves"},
		`defined user["a"]`:                      {9, "want ("},
		`defined(user["a"]`:                      {18, "want )"},
		`[1 2]`:                                  {4, "want , or ]"},
		`[1,]`:                                   {4, "want a value"},
		`1.2.3`:                                  {4, "operator or the end"},
		`12abc`:                                  {1, "want a number"},
		`1e`:                                     {1, "want a number"},
		`a & b`:                                  {1, "want a value"},
		`true & b`:                               {6, "no meaning"},
		`user["a"] AND true`:                     {11, "operator or the end"},
		`event["$time"] > datetime("yesterday")`: {27, "want a date"},
		`not`:                                    {4, "want a value"},
		strings.Repeat("(", 101) + "1":           {101, "nested deeper than 100"},
		strings.Repeat("not ", 200) + "true":     {397, "nested deeper than 100"},
		strings.Repeat("-", 200) + "1":           {100, "nested deeper than 100"},
		"1" + strings.Repeat(" ", where.MaxBytes): {1, "at most 16384"},
	} {
		_, err := where.Parse(src, where.Properties|where.Event|where.User)
		e, ok := errors.AsType[*where.Error](err)
		if !ok {
			t.Errorf("%.40s: %v", src, err)
			continue
		}
		if e.Position != want.at || !strings.Contains(e.Text, want.say) || strings.Contains(e.Error(), "secret") {
			t.Errorf("%.40s: %v, want character %d, %q", src, e, want.at, want.say)
		}
	}
}

func TestAScopeThatIsNotThereIsRefusedWhereItStands(t *testing.T) {
	_, err := where.Parse(`user["a"] == 1 and event["b"] == 2`, where.Properties|where.User)
	if e, ok := errors.AsType[*where.Error](err); !ok || e.Position != 20 || !strings.Contains(e.Text, "profiles have no event") {
		t.Errorf("err = %v", err)
	}
	e, err := where.Parse(`user["a"] == 1`, where.Properties|where.User)
	if err != nil || !e.Uses(where.User) || e.Uses(where.Properties) {
		t.Errorf("uses: %v", err)
	}
}

func TestLongChainsAndTextsStayWithinBounds(t *testing.T) {
	if !match(t, "true"+strings.Repeat(" and true", 1500)) {
		t.Error("a chain of 1500 is not true")
	}
	long := row{"long": `"` + strings.Repeat("x", 8000) + `"`}
	e, err := where.Parse(`defined(properties["long"]`+strings.Repeat(`+properties["long"]`, 800)+`)`, where.Properties)
	if err != nil {
		t.Fatal(err)
	}
	if e.Match(long) {
		t.Error("a text of 6 MB was joined")
	}
}

// FuzzParse proves that whatever is given is read or refused at a character of
// it, and that what is read can be evaluated, with one answer.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`user["$plan"] == "pro" and not (properties["x"] in [1, 2.5e3, 'a'] or defined(event["$time"]))`,
		`boolean(properties["a"]) == true`, `-floor(1/3) % 2 >= number("7")`, `"\ud83d\ude00\n" + 'x'`, `event["$time"] > datetime("2026-01-01")`,
		`((((`, `not not -`, "\xff\"", `"é`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		e, err := where.Parse(src, where.Properties|where.Event|where.User)
		if err != nil {
			w, ok := errors.AsType[*where.Error](err)
			if !ok || w.Position < 1 || w.Position > len([]rune(src))+1 {
				t.Fatalf("%q: %v", src, err)
			}
			return
		}
		if first, second := e.Match(sample), e.Match(sample); first != second {
			t.Fatalf("%q has two answers", src)
		}
	})
}
