package e2e

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mixpanel/mixpanel-go"
)

// TestEveryMethodOfMixpanelGoIsDriven fails when the client, or an event or a profile
// of it, has a method that no test here calls.
func TestEveryMethodOfMixpanelGoIsDriven(t *testing.T) {
	called := calledOfMixpanelGo(t)
	for _, typ := range []reflect.Type{reflect.TypeFor[*mixpanel.ApiClient](), reflect.TypeFor[*mixpanel.Event](), reflect.TypeFor[*mixpanel.PeopleProperties]()} {
		methods := slices.Collect(typ.Methods())
		if len(methods) == 0 {
			t.Errorf("%s has no methods: there is nothing to prove", typ)
		}
		for _, m := range methods {
			if !called[typ.Elem().Name()+"."+m.Name] {
				t.Errorf("no test calls %s.%s", typ, m.Name)
			}
		}
	}
}

// calledOfMixpanelGo are the methods of the client's package that test functions of
// this folder call, as "ApiClient.Track". Only that package and this one are
// type-checked; a method of the same name of another type is not one of them.
func calledOfMixpanelGo(t *testing.T) map[string]bool {
	t.Helper()
	client := reflect.TypeFor[mixpanel.ApiClient]().PkgPath()
	dir, err := build.Default.Import(client, ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	known := onlyKnown{}
	_, known[client] = checked(t, client, dir.Dir, func(name string) bool { return !strings.HasSuffix(name, "_test.go") }, known, nil)
	info := &types.Info{Selections: map[*ast.SelectorExpr]*types.Selection{}}
	files, _ := checked(t, "e2e", ".", func(name string) bool { return strings.HasSuffix(name, "_test.go") }, known, info)
	called := map[string]bool{}
	for _, f := range files {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "Test") {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || info.Selections[sel] == nil {
					return true
				}
				if obj := info.Selections[sel].Obj(); obj.Pkg() == known[client] {
					recv := info.Selections[sel].Recv().String()
					called[recv[strings.LastIndexByte(recv, '.')+1:]+"."+obj.Name()] = true
				}
				return true
			})
		}
	}
	return called
}

// onlyKnown imports the packages it has, and others as empty ones.
type onlyKnown map[string]*types.Package

// Import implements types.Importer.
func (k onlyKnown) Import(name string) (*types.Package, error) {
	if k[name] == nil {
		k[name] = types.NewPackage(name, path.Base(name))
	}
	return k[name], nil
}

// checked parses and type-checks a folder as far as what it imports is known.
func checked(t *testing.T, name, dir string, wanted func(string) bool, known types.Importer, info *types.Info) ([]*ast.File, *types.Package) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, p := range paths {
		if !wanted(p) {
			continue
		}
		f, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	conf := types.Config{Importer: known, Error: func(error) {}} // of what is not known
	pkg, _ := conf.Check(name, fset, files, info)                // see above
	return files, pkg
}
