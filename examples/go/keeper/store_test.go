package keeper

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func selfSigned(t *testing.T, key crypto.Signer) string {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// A service that died before it had an answer asks again with the same key.
func TestTheKeyThatWasBegunWithIsTakenAgain(t *testing.T) {
	folder := t.TempDir()
	first, err := store{folder}.nextKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := store{folder}.nextKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !first.(interface{ Equal(crypto.PrivateKey) bool }).Equal(again) {
		t.Error("another key")
	}
}

// One that died between putting a key into use and removing it from the next ones makes a new one.
func TestAKeyInUseIsNotAskedForAgain(t *testing.T) {
	kept := store{t.TempDir()}
	key, err := kept.nextKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadFile(filepath.Join(kept.folder, nextFile))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := kept.keep(key, selfSigned(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(kept.folder, nextFile), left, 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := kept.nextKey(pair)
	if err != nil {
		t.Fatal(err)
	}
	if samePublicKey(pair, next) {
		t.Error("the key in use is asked for again")
	}
}

// A certificate of another key changes nothing on disk.
func TestACertificateOfAnotherKeyIsRefused(t *testing.T) {
	kept, other := store{t.TempDir()}, store{t.TempDir()}
	key, err := kept.nextKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.nextKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kept.keep(key, selfSigned(t, foreign)); err == nil {
		t.Error("it was put into use")
	}
	if pair, err := kept.pair(); pair != nil || err != nil {
		t.Errorf("there is a pair, or %v", err)
	}
}

// What is in use is one file that nobody else reads, and it is found again.
func TestThePairIsReadAgain(t *testing.T) {
	kept := store{t.TempDir()}
	key, err := kept.nextKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kept.keep(key, selfSigned(t, key)); err != nil {
		t.Fatal(err)
	}
	pair, err := kept.pair()
	if err != nil || !samePublicKey(pair, key) {
		t.Fatalf("%v, %v", pair, err)
	}
	names, err := os.ReadDir(kept.folder)
	if err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	}
	if info, err := names[0].Info(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A file that something else has written is named, and what to do with it.
func TestBrokenFilesAreNamed(t *testing.T) {
	for _, name := range []string{pairFile, nextFile} {
		kept := store{t.TempDir()}
		if err := os.WriteFile(filepath.Join(kept.folder, name), []byte("no PEM"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := kept.pair()
		if name == nextFile {
			_, err = kept.nextKey(nil)
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
