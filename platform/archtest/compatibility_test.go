package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// row is one line of the compatibility page: the cells of its table.
type row struct {
	line                 int
	mx, does, here, test string
}

// rows are the rows of all tables of the page whose first column is MX.
func rows(page string) (out []row) {
	inside := false
	for i, line := range strings.Split(page, "\n") {
		if !strings.HasPrefix(line, "|") {
			inside = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		switch {
		case cells[0] == "MX":
			inside = true
		case !inside || strings.HasPrefix(cells[0], "---"):
		case len(cells) != 4:
			out = append(out, row{line: i + 1})
		default:
			out = append(out, row{i + 1, cells[0], cells[1], cells[2], cells[3]})
		}
	}
	return out
}

var testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)

// tests maps each test function of the repository to the text of the file it is in.
func tests(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllStringSubmatch(string(b), -1) {
			out[m[1]] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fault says what is wrong with a row, "" for nothing.
func fault(r *row, tests map[string]string) string {
	if r.mx == "" || r.does == "" {
		return "want four cells: MX, Mixpanel documents, cohortbridge, Test"
	}
	verdict, why, _ := strings.Cut(r.here, ":")
	switch {
	case verdict != "same" && verdict != "differs":
		return "want same or differs, got " + r.here
	case verdict == "differs" && len(strings.TrimSpace(why)) < 15:
		return "a difference without a reason"
	}
	if none, found := strings.CutPrefix(r.test, "none:"); found {
		if verdict == "same" || len(strings.TrimSpace(none)) < 15 {
			return "without a test: only for a difference, and with a reason"
		}
		return ""
	}
	cited := strings.Trim(r.test, "`")
	if "`"+cited+"`" != r.test {
		return "names no test: " + r.test
	}
	name, sub, isSub := strings.Cut(cited, "/")
	file, ok := tests[name]
	switch {
	case !ok:
		return "there is no test " + name
	case isSub && !strings.Contains(file, `"`+sub+`"`):
		return name + " has no row " + sub
	}
	return ""
}

func TestEveryRowOfTheCompatibilityPageNamesATestThatExists(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "mixpanel-compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := tests(t)
	list := rows(string(page))
	seen := map[string]bool{}
	untested := 0
	for _, r := range list {
		if why := fault(&r, all); why != "" {
			t.Errorf("docs/mixpanel-compatibility.md:%d: %s", r.line, why)
		}
		seen[r.mx] = true
		if strings.HasPrefix(r.test, "none:") {
			untested++
		}
	}
	for _, mx := range []string{"1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "2.1", "2.2", "2.3", "2.4", "2.5", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "4.1", "4.2", "4.3", "4.4", "4.5", "5.1", "5.2", "5.3", "5.5", "6", "6.1", "6.2", "6.3", "0.2", "0.3", "7.1", "8.1", "8.2", "8.3", "9 #34"} {
		if !seen[mx] {
			t.Errorf("no row on MX %s", mx)
		}
	}
	for n := range 28 {
		if mx := "9 #" + strconv.Itoa(n+1); !seen[mx] {
			t.Errorf("no row on MX %s", mx)
		}
	}
	if untested > len(list)/15 {
		t.Errorf("%d of %d rows have no test", untested, len(list))
	}
}

func TestARowThatProvesNothingIsFound(t *testing.T) {
	known := map[string]string{"TestA": `{"good row", 1}`}
	for line, good := range map[string]bool{
		"| 1 | x | same | `TestA` |":                                                             true,
		"| 1 | x | same: as decided | `TestA/good row` |":                                        true,
		"| 1 | x | differs: because there is no other way | `TestA` |":                           true,
		"| 1 | x | differs: because there is no other way | none: there is nothing to be seen |": true,
		"| 1 | x | same | `TestB` |":                                                             false,
		"| 1 | x | same | `TestA/bad row` |":                                                     false,
		"| 1 | x | same | TestA |":                                                               false,
		"| 1 | x | same |  |":                                                                    false,
		"| 1 | x | same | none: there is nothing to be seen |":                                   false,
		"| 1 | x | differs | `TestA` |":                                                          false,
		"| 1 | x | differs: so | `TestA` |":                                                      false,
		"| 1 | x | differs: because there is no other way | none |":                              false,
		"| 1 | x | partly | `TestA` |":                                                           false,
		"| 1 | x | same |":                                                                       false,
	} {
		list := rows("| MX | a | b | c |\n|---|---|---|---|\n" + line)
		if len(list) != 1 {
			t.Fatalf("%s: %d rows", line, len(list))
		}
		if why := fault(&list[0], known); (why == "") != good {
			t.Errorf("%s: %q", line, why)
		}
	}
}
