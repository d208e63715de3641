//go:build clients

package clients

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

// texts is what the scripts send as text: separators of forms, quotes, no ASCII.
const texts = `a+b&c=d%20 "q" \ ÿ>?~ नमस्ते 👩‍👩‍👧‍👦🎉`

// node runs the script of npm mixpanel.
func node(t *testing.T, c *harness.Client, steps int, env ...string) {
	t.Helper()
	script(t, "node.js", steps, append([]string{"HOST=" + c.Creds.HTTPAddr, "TOKEN=" + c.Creds.ProjectToken, "TEXTS=" + texts}, env...)...)
}

// names are the events' names with how often each is there.
func names(events []harness.Exported) map[string]int {
	out := map[string]int{}
	for _, n := range harness.Names(events) {
		out[n]++
	}
	return out
}

func TestMixpanelNodeTracksImportsAndWritesProfilesOverHTTPS(t *testing.T) {
	t.Parallel()
	cert, key, pool := certificate(t)
	dir := t.TempDir()
	p := harness.Standalone(t, dir, "--tls-cert", cert, "--tls-key", key)
	for _, m := range []struct {
		name string
		env  func(*harness.Client) []string
	}{
		{"project secret", func(c *harness.Client) []string { return []string{"SECRET=" + c.Creds.ProjectSecret} }},
		{"service account, verbose", func(c *harness.Client) []string {
			return []string{"VERBOSE=1", "ACCOUNT=" + c.Creds.ServiceAccount, "ACCOUNT_SECRET=" + c.Creds.ServiceSecret, "PROJECT_ID=" + c.Creds.ProjectID}
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			c := overTLS(p.NewProject(t, dir, simplified), pool)
			node(t, c, 45, append(m.env(c), "PROTOCOL=https", "NODE_EXTRA_CA_CERTS="+cert, "IMPORT=1")...)
			nodeWrote(t, c, true)
		})
	}
}

func TestMixpanelNodeTracksAndWritesProfilesOverPlainHTTP(t *testing.T) {
	t.Parallel()
	c := project(t, simplified)
	node(t, c, 41, "PROTOCOL=http")
	nodeWrote(t, c, false)
}

// nodeWrote checks what node.js sent.
func nodeWrote(t *testing.T, c *harness.Client, imported bool) {
	t.Helper()
	got := c.Export(t)
	want := map[string]int{"Tracked": 1, "Without a user": 1, "At a time": 1}
	for i := range 120 {
		want[fmt.Sprintf("Batch %d", i)] = 1
	}
	if imported {
		want["Imported"] = 1
		for i := range 60 {
			want[fmt.Sprintf("Old %d", i)] = 1
		}
	}
	have := names(got)
	if len(have) != len(want) {
		t.Errorf("%d names stored, want %d", len(have), len(want))
	}
	for n, times := range want {
		if have[n] != times {
			t.Errorf("%s is stored %d times, want %d", n, have[n], times)
		}
	}
	for _, e := range got {
		switch e.Event {
		case "Tracked":
			if e.Properties["text"] != texts || e.Properties["distinct_id"] != "node-user" || e.Properties["long"] != strings.Repeat("🎉", 255) || e.Properties["mp_lib"] != "node" {
				t.Errorf("Tracked is stored as %v", e.Properties)
			}
		case "Without a user":
			if e.Properties["distinct_id"] != "" {
				t.Errorf("Without a user has %v", e.Properties["distinct_id"])
			}
		default:
			if e.Properties["distinct_id"] != "node-user" {
				t.Errorf("%s has %v", e.Event, e.Properties["distinct_id"])
			}
		}
		for _, name := range []string{"ip", "token"} {
			if _, there := e.Properties[name]; there {
				t.Errorf("%s is stored with %s", e.Event, name)
			}
		}
	}
	harness.SameProperties(t, "node-user", c.Profile(t, "node-user"), map[string]any{
		"name": texts, "plan": "pro", "first": "yes", "second": "yes", "visits": 4.0, "fresh": 2.0, "stays": 1.0, "tags": []any{"a", "b", "c"}, "pages": []any{"home"},
		"$transactions": []any{map[string]any{"$amount": 19.5, "$time": "2026-02-01T00:00:00.000Z", "sku": "x"}},
	})
	modified := c.Profile(t, "node-modified")
	want2 := map[string]any{"a": 1.0, "b": 1.0, "n": 3.0, "list": []any{"x", "y"}, "$transactions": []any{}}
	harness.SameProperties(t, "node-modified", modified, want2)
	if seen, there := modified["$last_seen"]; there {
		t.Errorf("$ignore_time of every write: $last_seen is %v", seen)
	}
	c.NoProfile(t, "node-gone")
	harness.SameProperties(t, "company acme", c.Group(t, "company", "acme"), map[string]any{"name": texts, "plan": "pro", "first": "yes", "second": "yes", "tags": []any{"b", "c"}})
	c.NoGroup(t, "company", "gone")
}

func TestMixpanelNodeAliasJoinsTwoIdsInAnOriginalProject(t *testing.T) {
	t.Parallel()
	for _, verbose := range []string{"", "1"} {
		c := project(t, original)
		node(t, c, 5, "PROTOCOL=http", "ALIAS=1", "VERBOSE="+verbose)
		ids := harness.IDs(c.Export(t, "Before", "After"))
		if len(ids) != 2 || ids[0] != ids[1] {
			t.Fatalf("events before and after the alias have the ids %v, want one", ids)
		}
		// The user behind the alias was spared by $ignore_alias.
		harness.SameProperties(t, "anonymous-1", c.Profile(t, "anonymous-1"), map[string]any{"name": "Ada"})
	}
}

func TestMixpanelNodeIsToldWhatIsRefused(t *testing.T) {
	t.Parallel()
	c := project(t, simplified)
	for _, verbose := range []string{"", "1"} {
		script(t, "node.js", 4, "HOST="+c.Creds.HTTPAddr, "TOKEN=no-such-token", "PROTOCOL=http", "REFUSED=1", "VERBOSE="+verbose)
	}
	if got := harness.Names(c.Export(t)); len(got) != 0 {
		t.Errorf("stored %v", slices.Compact(got))
	}
}
