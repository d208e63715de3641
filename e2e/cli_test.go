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
	for _, args := range [][]string{
		{"projects", "list"}, {"connectors", "list"}, {"connectors", "get", "1"}, {"connectors", "verify", "1"}, {"cohorts", "list"}, {"cohorts", "get", "1"}, {"cohorts", "members", "1"},
		{"syncs", "list"}, {"syncs", "get", "1"}, {"syncs", "pause", "1", "--reason", "lunch"}, {"syncs", "resume", "1", "--watch"}, {"syncs", "run", "1", "--watch"}, {"runs", "list", "1"}, {"runs", "get", "1/1"},
		{"runs", "users", "1/1", "--outcome", "SENT"}, {"usage", "get"}, {"usage", "rules"}, {"usage", "months"}, {"usage", "by", "event"}, {"usage", "explain", "ann"}, {"usage", "reclassify"}, {"profiles", "rebuild-projection"},
		{"usage", "organization", "--operator-key-file", filepath.Join(dir, "operator.key")}, {"profiles", "get", "cli-1"}, {"profiles", "identity", "cli-1"}, {"profiles", "group", "company", "acme"},
	} {
		if out := c.run("", args...); strings.Count(out, "\n") < 3 {
			t.Errorf("%v printed no table:\n%s", args, out)
		}
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
