// Package secret encrypts what connectors hold. The key ring is Tink's, in a
// file only the owner can read; a KMS fits behind the same AEAD.
package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Open reads the key ring at path, or makes one with a fresh AES-256-GCM key.
func Open(path string) (tink.AEAD, error) {
	h, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		h, err = create(path)
	}
	if err != nil {
		return nil, fmt.Errorf("key ring %s: %w", path, err)
	}
	return aead.New(h)
}

func read(path string) (*keyset.Handle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	return insecurecleartextkeyset.Read(keyset.NewJSONReader(f))
}

// create writes the ring to a temporary file first: a ring cut short by a crash
// would make every stored passcode unreadable.
func create(path string) (*keyset.Handle, error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".keyring-*") // mode 0600
	if err != nil {
		return nil, err
	}
	err = errors.Join(insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(f)), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return h, nil
}
