package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// cli runs client commands against a standalone.
type cli struct {
	t     *testing.T
	bin   string
	creds string
}

// run runs a command and returns what it printed; it must succeed.
func (c *cli) run(stdin string, args ...string) string {
	c.t.Helper()
	out, errOut, err := c.try(stdin, args...)
	if err != nil {
		c.t.Fatalf("%v: %v\n%s", args, err, errOut)
	}
	return out
}

func (c *cli) try(stdin string, args ...string) (out, errOut string, err error) {
	cmd := exec.CommandContext(c.t.Context(), c.bin, append(args, "--credentials", c.creds)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "COHORTBRIDGE_PASSCODE="+sandbox.DefaultPasscode)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	return o.String(), e.String(), err
}

// json runs a command with --output json.
func (c *cli) json(stdin string, args ...string) map[string]any {
	c.t.Helper()
	out := c.run(stdin, append(args, "--output", "json")...)
	var m map[string]any
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		c.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return m
}

func TestTheCommandLineDoesTheMainJob(t *testing.T) {
	dir := t.TempDir()
	p := harness.Standalone(t, dir, "--sandbox-addr", "127.0.0.1:0")
	harness.Secret("passcode", sandbox.DefaultPasscode)
	c := &cli{t, harness.Binary(t), filepath.Join(dir, "dev-credentials.json")}

	var lines strings.Builder
	for range 3 {
		for _, u := range []string{"ann", "bob"} {
			lines.WriteString(`{"event":"Add To Cart","time":"2026-11-01T10:00:00Z","distinct_id":"` + u + `","insert_id":"` + u + `-1","properties":{"plan":"pro"}}` + "\n")
		}
	}
	if got := c.json(lines.String(), "events", "import"); got["imported"] != 6.0 || got["duplicates"] != 4.0 {
		t.Fatalf("import: %v", got)
	}
	if out := c.run("", "events", "export", "--from", "2026-11-01", "--to", "2026-11-01"); strings.Count(out, "\n") != 2 {
		t.Fatalf("export:\n%s", out)
	}
	exportsAndImportsTheSame(t, c, dir)
	cl := p.Client(t)
	cl.People(t, "cli", 0, 3, "plan", "pro")

	if a := cl.MustDo(t, "POST", "/groups?verbose=1", []byte(`[{"$token":"`+p.Creds.ProjectToken+`","$group_key":"company","$group_id":"acme","$set":{"size":5}}]`), harness.JSONHead); string(a.Body) != `{"error":null,"status":1}` {
		t.Fatalf("group: %s", a.Body)
	}

	conn := c.json("", "connectors", "create", "CT", "--account", sandbox.DefaultAccountID, "--host-url", "http://"+p.Creds.SandboxAddr)
	if conn["state"] != "STATE_CONNECTED" {
		t.Fatalf("connector: %v", conn)
	}
	const def = `{"property":{"filter":{"property":"plan","type":"VALUE_TYPE_STRING","operator":"PROPERTY_OPERATOR_EQUALS","operands":[{"string_value":"pro"}]}}}`
	if out := c.run(def, "cohorts", "preview"); !strings.Contains(out, "plan is pro") || !strings.Contains(out, " 3 ") {
		t.Fatalf("preview:\n%s", out)
	}
	c.run(def, "cohorts", "create", "Pros")
	run := c.json("", "syncs", "create", "--cohort", "1", "--connector", "1", "--mode", "DYNAMIC", "--watch")
	if run["state"] != "STATE_SUCCEEDED" || run["totals"].(map[string]any)["sent"] != "3" {
		t.Fatalf("run: %v", run)
	}
	harness.SegmentIs(t, p.Creds.SandboxAddr, "Pros", harness.Expect("cli", 0, 3))
	if out := c.run("", "sandbox", "campaign", "--segment", "Pros"); !strings.Contains(out, "60 events of 3 members") {
		t.Errorf("campaign: %s", out)
	}
	if out := c.run("", "cohorts", "update", "1", "--description", "new"); !strings.Contains(out, "Pros") {
		t.Errorf("update: %s", out)
	}
	c.run(`{"ids":{}}`, "cohorts", "create", "Listed")
	if out, errOut, err := c.try("$distinct_id,marker\ncli-1,x\nnobody-yet,x\nnull,x\n", "cohorts", "upload", "2"); err != nil || !strings.Contains(out, " 2 ") || !strings.Contains(errOut, "line 4") {
		t.Errorf("upload: %v\n%s%s", err, out, errOut)
	}
	if _, errOut, err := c.try("user\na\n", "cohorts", "upload", "2"); err == nil || !strings.Contains(errOut, "distinct_id") {
		t.Errorf("an upload without the column: %v %s", err, errOut)
	}
	if out := c.run(`{"all_of":{"operands":[{"in_cohort":{"cohorts":["projects/`+p.Creds.ProjectID+`/cohorts/2"]}},{"in_cohort":{"cohorts":["projects/`+p.Creds.ProjectID+`/cohorts/1"]}}]}}`, "cohorts", "preview"); !strings.Contains(out, "in Listed and in Pros") || !strings.Contains(out, " 1 ") {
		t.Errorf("preview of cohorts in a cohort:\n%s", out)
	}
	doc := c.run("", "cohorts", "export")
	if out := c.run(strings.ReplaceAll(doc, `"Pros"`, `"Amateurs"`), "cohorts", "import"); strings.Count(out, "created") != 1 || strings.Count(out, "unchanged") != 1 {
		t.Errorf("import of definitions:\n%s", out)
	}
	for _, args := range [][]string{
		{"cohorts", "history", "1"},
		{"projects", "list"}, {"projects", "get"}, {"projects", "update", "--clevertap-sources", "clevertap,clevertap-eu"}, {"connectors", "list"}, {"connectors", "get", "1"}, {"connectors", "verify", "1"}, {"cohorts", "list"}, {"cohorts", "get", "1"}, {"cohorts", "members", "1"},
		{"syncs", "dry-run", "1"}, {"syncs", "dry-run", "--cohort", "1", "--connector", "1"}, {"syncs", "list"}, {"syncs", "get", "1"}, {"syncs", "pause", "1", "--reason", "lunch"}, {"syncs", "resume", "1", "--watch"}, {"syncs", "run", "1", "--watch"}, {"runs", "list", "1"}, {"runs", "get", "1/1"},
		{"runs", "users", "1/1", "--outcome", "SENT"}, {"usage", "get"}, {"usage", "rules"}, {"usage", "months"}, {"usage", "by", "event"}, {"usage", "explain", "ann"}, {"usage", "reclassify"}, {"profiles", "rebuild-projection"},
		{"usage", "organization", "--operator-key-file", filepath.Join(dir, "operator.key")}, {"profiles", "get", "cli-1"}, {"profiles", "identity", "cli-1"}, {"profiles", "identity", "--ignore-alias", "cli-1"}, {"profiles", "group", "company", "acme"},
	} {
		if out := c.run("", args...); strings.Count(out, "\n") < 3 {
			t.Errorf("%v printed no table:\n%s", args, out)
		}
	}
	c.run("", "projects", "update", "--markers", "braze=b1,b2", "--markers", "iterable=i1")
	if out := c.run("", "projects", "update", "--markers", "iterable="); !strings.Contains(out, "b1, b2") || !strings.Contains(out, "clevertap-eu") || strings.Contains(out, "iterable") {
		t.Errorf("settings after changing them one by one:\n%s", out)
	}
	for by, head := range map[string]string{"day": "DAY ", "SOURCE": "SOURCE ", "event": "EVENT "} {
		if out := c.run("", "usage", "by", by); !strings.HasPrefix(strings.TrimSpace(out), head) || by == "SOURCE" && !strings.Contains(out, "(no source)") {
			t.Errorf("usage by %s is headed by another name than %s:\n%s", by, head, out)
		}
	}
	if out := c.run("", "usage", "get"); !strings.HasPrefix(strings.TrimSpace(out), "FIGURE ") {
		t.Errorf("usage get has no heading:\n%s", out)
	}
	if out := c.run("", "usage", "months", "--csv", "--months", "1"); !strings.HasPrefix(out, "month,mtu,users,") || strings.Count(out, "\n") != 2 {
		t.Errorf("usage as CSV:\n%s", out)
	}
	for _, tc := range []struct {
		args  []string
		names string
	}{
		{[]string{"usage", "organization"}, "operator"},
		{[]string{"projects", "update"}, "--help"},
		{[]string{"projects", "update", "--markers", "braze"}, "RULE=VALUE"},
		{[]string{"projects", "update", "--markers", "clevertap=x"}, "--clevertap-sources"},
		{[]string{"projects", "update", "--markers", "nobody=x"}, "partner_markers"},
		{[]string{"usage", "by", "moon"}, "want one of DAY, SOURCE, EVENT"},
		{[]string{"syncs", "run", "99"}, "99"},
		{[]string{"syncs", "create", "--cohort", "1", "--connector", "1", "--mode", "SOMETIMES"}, "ONE_TIME"},
		{[]string{"runs", "get", "1"}, "SYNC/RUN"},
		{[]string{"profiles", "group", "company", "nobody"}, "no group"},
		{[]string{"connectors", "create", "x", "--account", "A", "--region", "mars1"}, "region"},
		{[]string{"cohorts", "create", "y", "-f", "/nowhere"}, "/nowhere"},
	} {
		if _, errOut, err := c.try(def, tc.args...); err == nil || !strings.Contains(errOut, tc.names) || strings.Contains(errOut, "rpc error") {
			t.Errorf("%v: %v, %q, want an error that names %s", tc.args, err, errOut, tc.names)
		}
	}
}

// exportsAndImportsTheSame sends an export to the project it is of and to another, and
// lines that are no events, or break a rule, among others.
func exportsAndImportsTheSame(t *testing.T, c *cli, dir string) {
	t.Helper()
	key := []string{"--operator-key-file", filepath.Join(dir, "operator.key")}
	created := c.json("", append([]string{"projects", "create", "copy"}, key...)...)
	other, _ := created["project"].(map[string]any)["name"].(string)
	copyOf := append([]string{"--project", other}, key...)
	day := []string{"events", "export", "--from", "2026-11-01", "--to", "2026-11-01"}
	ours := c.run("", day...)
	if got := c.json(ours, "events", "import"); got["imported"] != 2.0 || got["duplicates"] != 2.0 {
		t.Errorf("an export imported again: %v, want 2 duplicates", got)
	}
	c.run(ours, append([]string{"events", "import"}, copyOf...)...)
	names := func(export string) string {
		var out []string
		for line := range strings.Lines(export) {
			var e map[string]any
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("exported line: %v", err)
			}
			delete(e, "processing_time")
			delete(e["properties"].(map[string]any), "$mp_event_size")
			delete(e["properties"].(map[string]any), "$import")
			b, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return strings.Join(out, "\n")
	}
	if theirs := c.run("", append(day, copyOf...)...); names(theirs) != names(ours) || !strings.Contains(ours, `"plan":"pro"`) {
		t.Errorf("exported\n%s\nimported into another project and exported again\n%s", names(ours), names(theirs))
	}

	mixed := "\ufeff" + `{"event":"View","properties":{"time":1793527200,"distinct_id":"eve","$insert_id":"m1","$city":"Oslo"}}
not JSON

{"event":"View","time":"2026-11-01T10:00:00Z","distinct_id":"null"}
{"event":"View","time":"2026-11-01T10:00:00Z","distinct_id":"eve","colour":"red"}
` + strings.Repeat("x", 3<<20) + `
{"event":"View","time":"2026-11-01T10:00:00Z","distinct_id":"eve","properties":[]}
{"event":"View","time":"2026-11-01T10:00:00Z","distinct_id":"eve","insert_id":"m2","properties":{"n":9007199254740993}}`
	out, errOut, err := c.try(mixed, append([]string{"events", "import"}, copyOf...)...)
	if err == nil || !strings.Contains(out, "5") {
		t.Errorf("import of mixed lines: %v\n%s", err, out)
	}
	for _, want := range []string{"line 2: ", "line 4: 'properties.distinct_id' is invalid", "line 5: is no event: colour is no field of an event", "line 6: longer", "line 7: is no event: properties must be an object", "5 of the lines"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("import of mixed lines says\n%s\nwant %q", errOut, want)
		}
		if strings.Contains(errOut, "cli.") || strings.Contains(errOut, "Go ") {
			t.Errorf("import of mixed lines speaks of its own types:\n%s", errOut)
		}
	}
	if theirs := c.run("", append(day, copyOf...)...); strings.Count(theirs, `"View"`) != 2 || !strings.Contains(theirs, "9007199254740993") {
		t.Errorf("stored of mixed lines:\n%s", theirs)
	}
}

func TestASecondProcessOnTheSameDataFolderIsRefused(t *testing.T) {
	dir := t.TempDir()
	harness.Standalone(t, dir)
	_, err := harness.TryStart(t, "standalone", "--data-dir", dir, "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0")
	if err == nil {
		t.Fatal("a second process started on the same data folder")
	}
}

func TestARestartKeepsEverythingAndTheSameCredentialsWork(t *testing.T) {
	dir := t.TempDir()
	p := harness.Standalone(t, dir)
	c := p.Client(t)
	c.People(t, "r", 0, 5, "plan", "pro")
	cohort := c.Cohort(t, "Kept", harness.PropertyIs("plan", "pro"))
	p.Stop(t)
	again := harness.Standalone(t, dir)
	if again.Creds.ServiceSecret != p.Creds.ServiceSecret || again.Creds.ProjectID != p.Creds.ProjectID {
		t.Fatal("the credentials changed")
	}
	if got := again.Client(t).Profile(t, "r-3")["plan"]; got != "pro" {
		t.Errorf("profile after restart: plan %v", got)
	}
	if a := again.Client(t).MustDo(t, "GET", "/v1/"+cohort, nil, nil); a.Status != 200 {
		t.Errorf("cohort after restart: HTTP %d", a.Status)
	}
}
