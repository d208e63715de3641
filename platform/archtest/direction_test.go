// Package archtest proves that the modules depend on each other in one
// direction only: gen ← platform ← services, gateway ← cmd.
package archtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const prefix = "github.com/cohortbridge/cohortbridge/"

// allowed is which modules of ours a module may require. e2e and bench drive the
// system from outside; what they may use of it is listed like everything else.
var allowed = map[string][]string{
	"gen":                 {},
	"platform":            {"gen"},
	"services/registry":   {"gen", "platform"},
	"services/ingestion":  {"gen", "platform"},
	"services/cohortsync": {"gen", "platform"},
	"gateway":             {"gen", "platform"},
	"sandbox":             {},
	"cmd/cohortbridge":    {"gen", "platform", "services/registry", "services/ingestion", "services/cohortsync", "gateway", "sandbox"},
	"e2e":                 {"gen", "sandbox"},
	"bench":               {"gen", "sandbox", "services/ingestion", "services/cohortsync"},
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestModulesImportInOneDirection(t *testing.T) {
	work, err := exec.Command("go", "work", "edit", "-json", filepath.Join(root(t), "go.work")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var w struct{ Use []struct{ DiskPath string } }
	if err := json.Unmarshal(work, &w); err != nil {
		t.Fatal(err)
	}
	if len(w.Use) != len(allowed) {
		t.Errorf("go.work has %d modules, the rules know %d", len(w.Use), len(allowed))
	}
	for _, u := range w.Use {
		module := strings.TrimPrefix(u.DiskPath, "./")
		may, known := allowed[module]
		if !known {
			t.Errorf("%s: no rule says what it may import", module)
			continue
		}
		dir := filepath.Join(root(t), module)
		check(t, module, imports(t, dir, `{{join .Imports "\n"}}`), may)
		// Tests may also talk to the sandbox: it imports nothing of ours.
		check(t, module+" (tests)", imports(t, dir, `{{join .TestImports "\n"}}{{"\n"}}{{join .XTestImports "\n"}}`), append([]string{module, "sandbox"}, may...))
	}
}

func check(t *testing.T, module string, imported, may []string) {
	t.Helper()
	for _, imp := range imported {
		if target := owner(imp); target != module && !slices.Contains(may, target) {
			t.Errorf("%s imports %s: it may only import %v", module, imp, may)
		}
	}
}

// imports are all packages of ours that the module's files import, in the form
// the template asks for.
func imports(t *testing.T, dir, template string) []string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-f", template, "./...")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v", dir, err)
	}
	var ours []string
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.HasPrefix(line, prefix) {
			ours = append(ours, strings.TrimPrefix(line, prefix))
		}
	}
	return ours
}

// owner is the module a package belongs to.
func owner(pkg string) string {
	best := ""
	for m := range allowed {
		if (pkg == m || strings.HasPrefix(pkg, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	return best
}
