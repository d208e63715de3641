// Package config fills a configuration struct: defaults, then a YAML file, then
// the environment, then flags, the later winning.
package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// EnvPrefix starts the environment's names: COHORTBRIDGE_HTTP_ADDR sets http_addr.
const EnvPrefix = "COHORTBRIDGE_"

// Validator is a config that can say what is wrong with it.
type Validator interface {
	// Validate returns an error that names the key and the fix.
	Validate() error
}

// Load fills target, a pointer to a struct that holds the defaults and whose
// fields carry `koanf:"key"` tags. A flag --http-addr sets http_addr. path may be empty.
func Load(target Validator, path string, flags *pflag.FlagSet) error {
	k := koanf.New(".")
	if err := k.Load(structs.Provider(target, "koanf"), nil); err != nil {
		return fmt.Errorf("defaults: %w", err)
	}
	known := map[string]bool{}
	for _, key := range k.Keys() {
		known[key] = true
	}
	if path != "" {
		fk := koanf.New(".")
		if err := fk.Load(file.Provider(path), yaml.Parser()); err != nil {
			return fmt.Errorf("config file %s: %w", path, err)
		}
		for _, key := range fk.Keys() {
			if !known[key] {
				return fmt.Errorf("config file %s: unknown key %q", path, key)
			}
		}
		if err := k.Merge(fk); err != nil {
			return err
		}
	}
	envp := env.Provider(".", env.Opt{Prefix: EnvPrefix, TransformFunc: func(name, v string) (string, any) {
		key := strings.ToLower(strings.TrimPrefix(name, EnvPrefix))
		if !known[key] {
			return "", nil // other COHORTBRIDGE_ names belong to the client commands
		}
		return key, v
	}})
	if err := k.Load(envp, nil); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	if flags != nil {
		p := posflag.ProviderWithFlag(flags, ".", k, func(f *pflag.Flag) (string, any) {
			key := strings.ReplaceAll(f.Name, "-", "_")
			if !f.Changed || !known[key] {
				return "", nil
			}
			return key, posflag.FlagVal(flags, f)
		})
		if err := k.Load(p, nil); err != nil {
			return fmt.Errorf("flags: %w", err)
		}
	}
	if err := k.Unmarshal("", target); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return target.Validate()
}

// Masked returns the config as a map for the log, with the fields tagged
// `secret:"true"` masked.
func Masked(cfg any) map[string]any {
	v := reflect.Indirect(reflect.ValueOf(cfg))
	out := map[string]any{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := f.Tag.Get("koanf")
		if key == "" {
			continue
		}
		switch {
		case f.Tag.Get("secret") == "true":
			if !v.Field(i).IsZero() {
				out[key] = "***"
			}
		case f.Type.Kind() == reflect.Struct:
			out[key] = Masked(v.Field(i).Interface())
		default:
			out[key] = fmt.Sprint(v.Field(i).Interface())
		}
	}
	return out
}
