package cli_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/cli"
	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
	"github.com/cohortbridge/cohortbridge/platform/config"
)

// setting is a row of the page's table of settings.
type setting struct {
	name, value string
	roles       []string
}

// settings are the rows of the first table of docs/mixpanel-compatibility.md.
func settings(t *testing.T) (out []setting) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "mixpanel-compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "| Setting | Role | Default | What it bounds |\n|---|---|---|---|\n")
	if !found {
		t.Fatal("the page has no table of settings")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for line := range strings.SplitSeq(table, "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 4 {
			t.Fatalf("want four cells: %s", line)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		out = append(out, setting{strings.Trim(cells[0], "`"), cells[2], strings.Split(cells[1], ", ")})
	}
	return out
}

func flagsOf(t *testing.T, role string) *pflag.FlagSet {
	t.Helper()
	cmd, _, err := cli.Root().Find([]string{role})
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Flags()
}

// plain is a default of the page as the flag prints it.
func plain(s string) string {
	switch mb, ok := strings.CutSuffix(s, " MB"); {
	case ok:
		n, _ := strconv.Atoi(mb) // no number is no default either
		return strconv.Itoa(n << 20)
	case s == "off":
		return "0"
	case s == "1 minute":
		return "1m0s"
	default:
		return strings.ReplaceAll(s, ",", "")
	}
}

func TestEverySettingOfTheCompatibilityPageIsAFlagWithItsDefault(t *testing.T) {
	known := config.Masked(roles.Default())
	listed := map[string]bool{}
	for _, s := range settings(t) {
		flag := strings.ReplaceAll(s.name, "_", "-")
		listed[flag] = true
		if _, ok := known[s.name]; !ok {
			t.Errorf("%s is no key of the config file", s.name)
		}
		for _, role := range []string{"standalone", "registry", "ingestion", "cohortsync", "gateway"} {
			f := flagsOf(t, role).Lookup(flag)
			if has := role == "standalone" || slices.Contains(s.roles, role); has != (f != nil) {
				t.Errorf("%s: a flag of %s: %v, the page says %v", s.name, role, f != nil, has)
			}
			if f == nil {
				continue
			}
			if f.DefValue != plain(s.value) {
				t.Errorf("%s: the default is %s, the page says %s", s.name, f.DefValue, s.value)
			}
			if strings.HasSuffix(flag, "bytes") && !strings.Contains(f.Usage, "bytes") {
				t.Errorf("--%s does not tell its unit: %s", flag, f.Usage)
			}
		}
	}
	limit := regexp.MustCompile(`^max-|-per-|-concurrent$|^queue-|^body-`)
	flagsOf(t, "standalone").VisitAll(func(f *pflag.Flag) {
		if limit.MatchString(f.Name) && !listed[f.Name] {
			t.Errorf("--%s is not on the page", f.Name)
		}
	})
	if len(listed) < 10 {
		t.Errorf("%d settings on the page", len(listed))
	}
}
